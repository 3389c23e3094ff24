// Matrices as checkpoints store them, against a plain decoding in double; grouped products against single ones.
#include "regard/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <vector>

#include "regard/error.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/sanitized.h"
#include "support/stored_weight.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

test::StoredWeight transposed(const test::StoredWeight& weight) {
  test::StoredWeight out{.type = weight.type, .rows = weight.columns, .columns = weight.rows, .bytes = weight.bytes};
  const auto size = static_cast<size_t>(block_of(weight.type).bytes);
  for (int64_t row = 0; row < weight.rows; ++row)
    for (int64_t column = 0; column < weight.columns; ++column)
      std::memcpy(out.bytes.data() + static_cast<size_t>(column * weight.rows + row) * size,
                  weight.bytes.data() + static_cast<size_t>(row * weight.columns + column) * size, size);
  return out;
}

std::vector<float> numbers_of(const test::StoredWeight& weight) {
  std::vector<float> all;
  std::vector<float> row(static_cast<size_t>(weight.columns));
  for (int64_t r = 0; r < weight.rows; ++r) {
    decode_row(weight.view(), r, row);
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

// A scaled matrix in every form, and its numbers in double.
struct Scaled {
  static constexpr int64_t kRows = 37;

  int64_t columns;
  test::StoredWeight values, scales, zeros;
  StoredMatrix matrix;
  std::vector<double> numbers;   // [rows][columns]
  std::vector<double> minimums;  // at least the size of (offset - zero) * scale
  bool exact;

  struct Form {
    WeightType values, scales;
    std::optional<WeightType> zeros;
    int64_t scale_rows;  // 1 or all
    int64_t group;
    bool transposed;
    bool ordered;
  };

  Scaled(const Form& form, int64_t width) : columns(width), exact(form.scales != WeightType::f32) {
    const int64_t groups = form.group == 0 ? 1 : columns / form.group;
    values = test::random_weight(form.values, kRows, columns, 401);
    scales = test::random_weight(form.scales, form.scale_rows, groups, 402);
    if (form.zeros) zeros = test::random_weight(*form.zeros, form.scale_rows, groups, 403);
    if (form.ordered) {
      matrix.order.resize(static_cast<size_t>(columns));
      for (int64_t k = 0; k < columns; ++k) matrix.order[static_cast<size_t>(k)] = k * 11 % columns;
    }
    std::vector<int64_t> group_of(static_cast<size_t>(columns));
    for (int64_t k = 0; k < columns && form.group > 0; ++k)
      group_of[static_cast<size_t>(form.ordered ? matrix.order[static_cast<size_t>(k)] : k)] = k / form.group;
    const auto v = numbers_of(values);
    const auto s = numbers_of(scales);
    const auto z = form.zeros ? numbers_of(zeros) : std::vector<float>(s.size());
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t column = 0; column < columns; ++column) {
        const auto at =
            static_cast<size_t>((form.scale_rows == 1 ? 0 : row) * groups + group_of[static_cast<size_t>(column)]);
        const auto scale = static_cast<double>(s[at]);
        numbers.push_back(
            (static_cast<double>(v[static_cast<size_t>(row * columns + column)]) - static_cast<double>(z[at])) * scale);
        minimums.push_back((std::fabs(static_cast<double>(z[at])) + 128) * std::fabs(scale));
      }
    if (form.transposed) {
      values = test::StoredWeight(transposed(values));
      scales = transposed(scales);
      if (form.zeros) zeros = transposed(zeros);
    }
    matrix.values = values.view();
    matrix.scales = scales.view();
    if (form.zeros) matrix.zeros = zeros.view();
    matrix.group = form.group;
    matrix.transposed = form.transposed;
  }
};

template <class Check>
void for_each_form(Check check) {
  using enum WeightType;
  for (const WeightType values : {i8, u8, f8_e4m3})
    for (const WeightType scales : {f32, bf16, f16})
      for (const std::optional<WeightType> zeros : {std::optional<WeightType>(), std::optional(i8), std::optional(u8)})
        for (const auto& [scale_rows, group] :
             {std::pair<int64_t, int64_t>{1, 0}, {Scaled::kRows, 0}, {Scaled::kRows, 32}, {Scaled::kRows, 20}})
          for (const bool turned : {false, true})
            for (const bool ordered : {false, true}) {
              if (values == f8_e4m3 && zeros) continue;
              if (test::kSanitized && scales != f32) continue;
              SCOPED_TRACE(::testing::Message()
                           << name_of(values) << " times " << name_of(scales) << ", zeros "
                           << (zeros ? name_of(*zeros) : "none") << ", " << scale_rows << " rows of scales, groups of "
                           << group << ", transposed " << turned << ", ordered " << ordered);
              check(Scaled({.values = values,
                            .scales = scales,
                            .zeros = zeros,
                            .scale_rows = scale_rows,
                            .group = group,
                            .transposed = turned,
                            .ordered = ordered},
                           group == 20 ? 260 : 288));
            }
}

TEST(StoredMatrix, ScaledValuesKeepTheirNumbers) {
  const Threads threads(2);
  for_each_form([&](const Scaled& scaled) {
    const auto packed = PackedMatrix::pack(scaled.matrix, threads);
    ASSERT_EQ(packed.rows(), Scaled::kRows);
    std::vector<float> row(static_cast<size_t>(scaled.columns));
    std::vector<float> stored(row.size());
    for (int64_t r = 0; r < Scaled::kRows; ++r) {
      packed.decode_row(r, row);
      decode_row(scaled.matrix, r, stored);
      for (size_t c = 0; c < row.size(); ++c) {
        const size_t at = static_cast<size_t>(r * scaled.columns) + c;
        ASSERT_EQ(static_cast<double>(stored[c]), static_cast<double>(static_cast<float>(scaled.numbers[at])));
        if (scaled.exact) {
          ASSERT_EQ(row[c], static_cast<float>(scaled.numbers[at])) << r << ' ' << c;
        } else {  // Scales of f32 round the minimum, and then the number.
          ASSERT_NEAR(static_cast<double>(row[c]), scaled.numbers[at],
                      0x1.001p-24 * (scaled.minimums[at] + std::fabs(scaled.numbers[at])))
              << r << ' ' << c;
        }
      }
    }
  });
}

// One rank's rows and columns.
TEST(StoredMatrix, RowsAndColumnsOfScaledValuesAreThoseAskedFor) {
  const Threads threads(1);
  const std::vector<int64_t> rows = {5, -1, 36, 0};
  const std::vector<Columns> columns = {
      {.first = 100, .count = 60}, {.first = -1, .count = 2}, {.first = 0, .count = 6}};
  for_each_form([&](const Scaled& scaled) {
    const auto packed = PackedMatrix::pack(scaled.matrix, threads, rows, columns);
    std::vector<float> row(68);
    for (size_t r = 0; r < rows.size(); ++r) {
      packed.decode_row(static_cast<int64_t>(r), row);
      for (int64_t c = 0; c < 68; ++c) {
        const bool zero = rows[r] < 0 || (c >= 60 && c < 62);
        const int64_t source = c < 60 ? 100 + c : c - 62;
        const size_t at = static_cast<size_t>(rows[r] * scaled.columns + source);
        const double expected = zero ? 0 : scaled.numbers[at];
        const double error = zero ? 0 : 0x1p-23 * (scaled.minimums[at] + std::fabs(scaled.numbers[at]));
        ASSERT_NEAR(static_cast<double>(row[static_cast<size_t>(c)]), expected, error) << r << ' ' << c;
      }
    }
  });
}

void apply_one(const Linear& layer, ConstTensorView x, TensorView out, Workspace& workspace) {
  apply(std::array{&layer}, x, std::array{out}, workspace);
}

TEST(StoredMatrix, ScaledValuesMultiplyAsTheirNumbers) {
  Workspace workspace(2);
  for_each_form([&](const Scaled& scaled) {
    const Linear layer = Linear::load(scaled.matrix, {}, Threads(2));
    for (const int64_t tokens : {1, 40}) {
      const Tensor x = test::Numbers(404).tensor({tokens, scaled.columns});
      const Tensor out(DType::f32, {tokens, Scaled::kRows});
      apply_one(layer, x, out, workspace);
      for (int64_t m = 0; m < tokens; ++m)
        for (int64_t n = 0; n < Scaled::kRows; ++n) {
          double sum = 0, sizes = 0;
          for (int64_t k = 0; k < scaled.columns; ++k) {
            const auto at = static_cast<size_t>(n * scaled.columns + k);
            const auto factor = static_cast<double>(x.view()[m].as<float>()[k]);
            sum += factor * scaled.numbers[at];
            sizes += std::fabs(factor) * (std::fabs(scaled.numbers[at]) + scaled.minimums[at]);
          }
          ASSERT_NEAR(static_cast<double>(out.view()[m].as<float>()[n]), sum, 300 * 0x1p-24 * sizes) << m << ' ' << n;
        }
    }
  });
}

TEST(StoredMatrix, TransposedMatricesOfEveryPlainTypeKeepTheirNumbers) {
  const Threads threads(2);
  for (const WeightType type : test::kAllWeightTypes) {
    if (is_quantized(type)) continue;
    SCOPED_TRACE(name_of(type));
    const auto plain = test::random_weight(type, 50, 33, 405);
    const auto turned = transposed(plain);
    StoredMatrix matrix = turned.view();
    matrix.transposed = true;
    const std::vector<int64_t> rows = {1, 3, -1, 49, 0};
    const std::vector<Columns> columns = {
        {.first = 7, .count = 20}, {.first = -1, .count = 3}, {.first = 0, .count = 2}};
    const auto actual = PackedMatrix::pack(matrix, threads, rows, columns);
    const auto expected = PackedMatrix::pack(plain.view(), threads, rows, columns);
    std::vector<float> a(25), b(25);
    for (int64_t row = 0; row < 5; ++row) {
      actual.decode_row(row, a);
      expected.decode_row(row, b);
      EXPECT_EQ(a, b);
    }
    EXPECT_EQ(actual.bytes(), expected.bytes());
  }
}

// Integers stay integers: bytes with a header for each group.
TEST(StoredMatrix, ScaledIntegersTakeAByteEach) {
  const Scaled narrow({WeightType::i8, WeightType::f16, {}, Scaled::kRows, 32, false, true}, 288);
  EXPECT_EQ(PackedMatrix::pack(narrow.matrix, Threads(1)).bytes(), 48 * 288 * 34 / 32);
  const Scaled wide({WeightType::u8, WeightType::f32, WeightType::u8, Scaled::kRows, 32, true, true}, 288);
  EXPECT_EQ(PackedMatrix::pack(wide.matrix, Threads(1)).bytes(), 48 * 288 * 40 / 32);
}

TEST(StoredMatrix, RefusesPartsThatDoNotFit) {
  const Scaled scaled({WeightType::u8, WeightType::f16, WeightType::u8, Scaled::kRows, 32, false, true}, 288);
  const auto refusal = [&](auto change) {
    StoredMatrix matrix = scaled.matrix;
    change(matrix);
    return error_of([&] { (void)PackedMatrix::pack(matrix, Threads(1)); });
  };
  EXPECT_EQ(refusal([](StoredMatrix&) {}), "");
  EXPECT_THAT(refusal([](StoredMatrix& m) { m.scales = {}; }), HasSubstr("but no scales"));
  EXPECT_THAT(refusal([](StoredMatrix& m) { m.group = 96; }), HasSubstr("has 333 scales"));
  EXPECT_THAT(refusal([](StoredMatrix& m) { m.group = 7; }), HasSubstr("group is 7"));
  EXPECT_THAT(refusal([](StoredMatrix& m) { m.zeros = m.zeros.row_range(0, 36); }), HasSubstr("324 zeros"));
  EXPECT_THAT(refusal([](StoredMatrix& m) { m.order[3] = m.order[4]; }), HasSubstr("no permutation"));
  EXPECT_THAT(refusal([](StoredMatrix& m) { m.order.pop_back(); }), HasSubstr("no permutation"));
  EXPECT_THAT(refusal([](StoredMatrix& m) { m.scales.type = WeightType::i8; }), HasSubstr("scales have type i8"));
  const auto blocks = test::random_weight(WeightType::q8_0, 4, 64, 1);
  EXPECT_THAT(refusal([&](StoredMatrix& m) {
                m = blocks.view();
                m.transposed = true;
              }),
              HasSubstr("transposed"));
  EXPECT_THAT(refusal([&](StoredMatrix& m) { m.values = blocks.view(); }), HasSubstr("expected i8, u8 or f8_e4m3"));
}

TEST(Linear, TheBiasFollowsTheRowsAndIsChecked) {
  const auto weight = test::random_weight(WeightType::f32, 3, 8, 406);
  const std::vector<float> bias = {1, 2, 3};
  const std::vector<int64_t> rows = {2, -1, 0};
  EXPECT_EQ(Linear::load(weight.view(), bias, Threads(1), rows).bias(), (std::vector<float>{3, 0, 1}));
  EXPECT_THAT(error_of([&] {
                (void)Linear::load(weight.view(), std::vector<float>{1, 2}, Threads(1));
              }),
              HasSubstr("bias has 2 numbers, expected 3"));
  EXPECT_THAT(error_of([&] {
                (void)Linear::load(weight.view(), std::vector<float>{1, NAN, 2}, Threads(1));
              }),
              HasSubstr("NaN"));
}

// ---- Grouped products ----

struct Grouping {
  std::vector<int64_t> counts;  // rows of each group

  [[nodiscard]] int64_t rows() const { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }
};

// No rows, one, around the kernels' tiles, more than are packed at once, and many small groups.
std::vector<Grouping> groupings() {
  std::vector<Grouping> all = {{{1}}, {{0, 1, 0}}, {{1, 1, 1, 1}}, {{12, 13, 3, 0, 7}}, {{300, 2, 241, 5}}, {{0, 700}}};
  all.push_back({std::vector<int64_t>(400, 1)});
  return all;
}

TEST(Grouped, RowsHaveTheBitsOfTheirOwnProduct) {
  std::vector<Linear> narrow, wide;
  for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::q8_0, WeightType::q4_k}) {
    narrow.push_back(
        Linear::load(test::random_weight(type, 35, 512, 411).view(), test::Numbers(412).floats(35), Threads(1)));
    wide.push_back(Linear::load(test::random_weight(type, 150, 512, 413).view(), {}, Threads(1)));
  }
  Workspace one(1);
  const Tensor x = test::Numbers(414).tensor({50, 512});
  std::vector<std::array<Tensor, 2>> alone;
  for (size_t layer = 0; layer < narrow.size(); ++layer) {
    alone.push_back({Tensor(DType::f32, {50, 35}), Tensor(DType::f32, {50, 150})});
    apply_one(narrow[layer], x, alone.back()[0], one);
    apply_one(wide[layer], x, alone.back()[1], one);
  }
  for (const Grouping& grouping : groupings())
    for (const int threads : {1, 2, 3, 5}) {
      SCOPED_TRACE(::testing::Message() << grouping.counts.size() << " groups, " << threads << " threads");
      std::vector<std::array<const Linear*, 2>> layers;
      std::vector<int64_t> index;
      for (int64_t row = 0; row < grouping.rows(); ++row) index.push_back(row * 7 % 50);
      for (size_t i = 0; i < grouping.counts.size(); ++i) layers.push_back({&narrow[i % 4], &wide[i % 4]});
      std::vector<RowGroup> groups;
      int64_t first = 0;
      for (size_t i = 0; i < layers.size(); first += grouping.counts[i++])
        groups.push_back({.first = first, .count = grouping.counts[i], .layers = layers[i]});
      const std::array<Tensor, 2> outs = {Tensor(DType::f32, {first, 35}), Tensor(DType::f32, {first, 150})};
      Workspace workspace(threads);
      apply_grouped(groups, x, index, std::array<TensorView, 2>{outs[0], outs[1]}, workspace);
      for (size_t i = 0; i < groups.size(); ++i)
        for (int64_t row = groups[i].first; row < groups[i].first + groups[i].count; ++row)
          for (size_t j = 0; j < 2; ++j)
            ASSERT_EQ(test::bytes_of(outs[j].view()[row]),
                      test::bytes_of(alone[i % 4][j].view()[index[static_cast<size_t>(row)]]))
                << "group " << i << " row " << row << " layer " << j;
    }
}

TEST(Grouped, ColumnsHaveTheBitsOfTheirOwnProduct) {
  std::vector<Linear> layers;
  for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::q4_0})
    layers.push_back(
        Linear::load(test::random_weight(type, 35, 512, 421).view(), test::Numbers(422).floats(35), Threads(1)));
  const Tensor x = test::Numbers(423).tensor({60, 512});
  std::vector<const Linear*> pointers = {&layers[0], &layers[1], &layers[2]};
  std::vector<RowGroup> groups;
  for (size_t i = 0; i < 3; ++i)
    groups.push_back({.first = static_cast<int64_t>(i) * 20, .count = 20, .layers = {&pointers[i], 1}});
  Workspace workspace(3);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 512}, {128, 128}, {384, 96}, {32, 480}}) {
    const Tensor out(DType::f32, {60, 35});
    apply_grouped_columns(groups, x, first, count, out, workspace);
    for (size_t i = 0; i < 3; ++i) {
      const Tensor expected(DType::f32, {20, 35});
      apply_columns(groups[i].layers[0]->weight(), x.view().slice(0, groups[i].first, 20), first, count, expected,
                    workspace);
      EXPECT_EQ(test::bytes_of(out.view().slice(0, groups[i].first, 20)), test::bytes_of(expected));
    }
  }
}

// A group whose columns have an order beside one whose have none.
TEST(Grouped, OrderedColumnsHaveTheBitsOfTheirOwnProduct) {
  const Scaled ordered({WeightType::i8, WeightType::f16, {}, Scaled::kRows, 32, false, true}, 288);
  const Scaled plain({WeightType::i8, WeightType::f16, {}, Scaled::kRows, 32, false, false}, 288);
  const Linear first = Linear::load(ordered.matrix, {}, Threads(1));
  const Linear second = Linear::load(plain.matrix, {}, Threads(1));
  const std::array<const Linear*, 2> layers = {&first, &second};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = test::Numbers(431).tensor({6, 288}, dtype);
    const std::vector<int64_t> index = {5, 0, 0, 3};
    const std::array groups = {RowGroup{.first = 0, .count = 3, .layers = std::span(layers).first(1)},
                               RowGroup{.first = 3, .count = 1, .layers = std::span(layers).last(1)}};
    const Tensor out(DType::f32, {4, Scaled::kRows});
    Workspace workspace(2);
    apply_grouped(groups, x, index, std::array<TensorView, 1>{out}, workspace);
    for (size_t i = 0; i < 2; ++i) {
      const Tensor alone(DType::f32, {6, Scaled::kRows});
      apply_one(*layers[i], x, alone, workspace);
      for (int64_t row = groups[i].first; row < groups[i].first + groups[i].count; ++row)
        EXPECT_EQ(test::bytes_of(out.view()[row]), test::bytes_of(alone.view()[index[static_cast<size_t>(row)]]));
    }
  }
}

TEST(Grouped, RefusesGroupsThatDoNotFit) {
  const Linear layer = Linear::load(test::random_weight(WeightType::f32, 5, 8, 1).view(), {}, Threads(1));
  const std::array<const Linear*, 1> layers = {&layer};
  const Tensor x(DType::f32, {3, 8});
  const Tensor out(DType::f32, {3, 5});
  Workspace workspace(1);
  const auto refusal = [&](std::vector<RowGroup> groups, std::vector<int64_t> index) {
    return error_of([&] { apply_grouped(groups, x, index, std::array<TensorView, 1>{out}, workspace); });
  };
  EXPECT_EQ(refusal({{0, 3, layers}}, {}), "");
  EXPECT_EQ(refusal({{0, 1, layers}, {1, 2, layers}}, {2, 2, 0}), "");
  EXPECT_THAT(refusal({{0, 2, layers}}, {}), HasSubstr("the groups have 2 rows, expected 3"));
  EXPECT_THAT(refusal({{0, 1, layers}, {2, 1, layers}}, {}), HasSubstr("rows 2 to 2"));
  EXPECT_THAT(refusal({{0, 3, {}}}, {}), HasSubstr("0 layers"));
  EXPECT_THAT(refusal({{0, 3, layers}}, {0, 3, 1}), HasSubstr("row 3, expected 0 to 2"));
  EXPECT_THAT(refusal({{0, 2, layers}}, {0, 1}), HasSubstr("output has shape [3, 5], expected [2, 5]"));
}

}  // namespace
}  // namespace regard
