#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "regard/error.h"
#include "regard/linear.h"
#include "support/error_of.h"
#include "support/stored_weight.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

std::vector<float> row_of(const WeightView& weight, int64_t row) {
  std::vector<float> values(static_cast<size_t>(weight.columns));
  decode_row(weight, row, values);
  return values;
}

std::vector<float> row_of(const PackedMatrix& matrix, int64_t row) {
  std::vector<float> values(static_cast<size_t>(matrix.columns()));
  matrix.decode_row(row, values);
  return values;
}

// Tiles hold 16 rows: fewer, exactly as many, one more, and several tiles with a ragged end.
TEST(PackedMatrix, KeepsEveryNumberOfEveryType) {
  const Threads threads(2);
  for (const WeightType type : test::kAllWeightTypes)
    for (const int64_t rows : {1, 15, 16, 17, 50}) {
      SCOPED_TRACE(::testing::Message() << name_of(type) << ' ' << rows);
      const auto stored = test::random_weight(type, rows, 512, 21);
      const auto packed = PackedMatrix::pack(stored.view(), threads);
      EXPECT_EQ(packed.rows(), rows);
      EXPECT_EQ(packed.columns(), 512);
      EXPECT_EQ(packed.source_type(), type);
      for (int64_t row = 0; row < rows; ++row) ASSERT_EQ(row_of(packed, row), row_of(stored.view(), row)) << row;
    }
}

TEST(PackedMatrix, TakesPlainRowsOfAnyWidth) {
  const Threads threads(1);
  for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::f16, WeightType::i8})
    for (const int64_t columns : {1, 7, 255, 257}) {
      const auto stored = test::random_weight(type, 18, columns, 22);
      const auto packed = PackedMatrix::pack(stored.view(), threads);
      for (int64_t row = 0; row < 18; ++row) ASSERT_EQ(row_of(packed, row), row_of(stored.view(), row)) << row;
    }
}

// Narrow types stay narrow: bytes a value, with a quantised type's scales.
TEST(PackedMatrix, TakesNoMoreMemoryThanItsType) {
  const Threads threads(1);
  const auto bytes = [&](WeightType type) {
    return PackedMatrix::pack(test::random_weight(type, 32, 512, 1).view(), threads).bytes();
  };
  constexpr int64_t kValues = 32 * 512;
  EXPECT_EQ(bytes(WeightType::f32), kValues * 4);
  EXPECT_EQ(bytes(WeightType::bf16), kValues * 2);
  EXPECT_EQ(bytes(WeightType::f16), kValues * 2);
  EXPECT_EQ(bytes(WeightType::q8_0), kValues * 34 / 32);
  EXPECT_EQ(bytes(WeightType::q4_1), kValues * 20 / 32);
}

TEST(PackedMatrix, RowOrderPutsRowsWhereItSays) {
  const Threads threads(2);
  std::vector<int64_t> order(40);
  for (int64_t row = 0; row < 40; ++row) order[static_cast<size_t>(row)] = row * 7 % 40;
  for (const WeightType type : {WeightType::f32, WeightType::q4_0, WeightType::q6_k}) {
    const auto stored = test::random_weight(type, 40, 256, 23);
    const auto packed = PackedMatrix::pack(stored.view(), threads, order);
    for (int64_t row = 0; row < 40; ++row)
      EXPECT_EQ(row_of(packed, row), row_of(stored.view(), order[static_cast<size_t>(row)])) << row;
  }
}

// Fewer rows than there are, one of them twice, some of zeros.
TEST(PackedMatrix, RowsAreThoseOfTheListAndZerosForMinusOne) {
  const Threads threads(2);
  const std::vector<int64_t> rows = {39, -1, 0, 7, 7, -1};
  for (const WeightType type : test::kAllWeightTypes) {
    SCOPED_TRACE(name_of(type));
    const auto stored = test::random_weight(type, 40, 256, 25);
    const auto packed = PackedMatrix::pack(stored.view(), threads, rows);
    ASSERT_EQ(packed.rows(), 6);
    for (size_t row = 0; row < rows.size(); ++row)
      EXPECT_EQ(row_of(packed, static_cast<int64_t>(row)),
                rows[row] < 0 ? std::vector<float>(256) : row_of(stored.view(), rows[row]));
  }
}

std::vector<float> picked(const std::vector<float>& row, std::span<const Columns> columns) {
  std::vector<float> values;
  for (const auto& [first, count] : columns)
    for (int64_t i = 0; i < count; ++i) values.push_back(first < 0 ? 0.0F : row[static_cast<size_t>(first + i)]);
  return values;
}

// Cuts at blocks, at groups, inside groups at even places, and at odd ones.
const std::vector<Columns> kCuts[] = {{{256, 256}},
                                      {{64, 64}, {-1, 64}, {0, 64}},
                                      {{480, 32}, {32, 96}},
                                      {{16, 16}, {-1, 16}, {496, 16}},
                                      {{24, 8}, {0, 8}, {-1, 8}, {504, 8}},
                                      {{4, 20}, {100, 4}},
                                      {{2, 2}, {-1, 6}, {510, 2}},
                                      {{1, 3}, {-1, 1}, {509, 3}},
                                      {{48, 32}, {264, 64}},
                                      {{3, 32}},
                                      {{511, 1}}};

TEST(PackedMatrix, ColumnsAreThoseOfTheListWithEveryNumberKept) {
  const Threads threads(2);
  for (const WeightType type : test::kAllWeightTypes)
    for (const auto& columns : kCuts) {
      SCOPED_TRACE(::testing::Message() << name_of(type) << ", first cut " << columns[0].first);
      const auto stored = test::random_weight(type, 19, 512, 26);
      const auto packed = PackedMatrix::pack(stored.view(), threads, {}, columns);
      EXPECT_EQ(packed.source_type(), type);
      for (int64_t row = 0; row < 19; ++row)
        ASSERT_EQ(row_of(packed, row), picked(row_of(stored.view(), row), columns)) << row;
    }
}

// A cut costs scales, but never more than the numbers as f32 would.
TEST(PackedMatrix, CutGroupsTakeNoMoreMemoryThanF32) {
  const Threads threads(1);
  for (const WeightType type : test::kAllWeightTypes) {
    const auto stored = test::random_weight(type, 16, 512, 27);
    for (const auto& columns : kCuts) {
      const auto packed = PackedMatrix::pack(stored.view(), threads, {}, columns);
      EXPECT_LE(packed.bytes(), packed.columns() * 16 * 4) << name_of(type);
    }
  }
  const auto stored = test::random_weight(WeightType::q8_0, 16, 512, 27);
  const Columns aligned{.first = 32, .count = 64};
  EXPECT_EQ(PackedMatrix::pack(stored.view(), threads, {}, std::span(&aligned, 1)).bytes(), 16 * 64 * 34 / 32);
  // Neighbours may be multiplied alone, so that a cut between them counts too.
  const std::vector<Columns> neighbours = {{32, 8}, {40, 24}, {0, 32}};
  EXPECT_EQ(PackedMatrix::pack(stored.view(), threads, {}, neighbours).bytes(), 16 * 64 * (8 + 2) / 8);
}

TEST(PackedMatrix, RefusesRowsAndColumnsThatAreNotThere) {
  const Threads threads(2);
  const auto stored = test::random_weight(WeightType::f32, 40, 4, 1);
  const auto rows = [&](std::vector<int64_t> wanted) {
    return error_of([&] { (void)PackedMatrix::pack(stored.view(), threads, wanted); });
  };
  EXPECT_EQ(rows({39, -1}), "");
  EXPECT_THAT(rows({0, 40}), HasSubstr("row 40 is asked for, expected -1 to 39"));
  EXPECT_THAT(rows({-2}), HasSubstr("row -2"));
  const auto columns = [&](Columns wanted) {
    return error_of([&] { (void)PackedMatrix::pack(stored.view(), threads, {}, std::span(&wanted, 1)); });
  };
  EXPECT_EQ(columns({0, 4}), "");
  EXPECT_THAT(columns({1, 4}), HasSubstr("4 columns from 1 are asked for, but there are 4"));
  EXPECT_THAT(columns({-2, 1}), HasSubstr("from -2"));
  EXPECT_THAT(columns({0, -1}), HasSubstr("-1 columns"));
  EXPECT_THAT(columns({5, 0}), HasSubstr("from 5"));
  EXPECT_THAT(columns({std::numeric_limits<int64_t>::max(), 1}), HasSubstr("are asked for"));
  EXPECT_THAT(columns({0, std::numeric_limits<int64_t>::max()}), HasSubstr("are asked for"));
  EXPECT_THAT(columns({-1, std::numeric_limits<int64_t>::max()}), HasSubstr("are asked for"));
}

// One NaN anywhere in the last row, in the scales of the quantised types.
TEST(PackedMatrix, RefusesNaN) {
  const Threads threads(2);
  for (const WeightType type : test::kAllWeightTypes) {
    SCOPED_TRACE(name_of(type));
    auto stored = test::random_weight(type, 20, 256, 24);
    const auto put = [&](int64_t from_end, auto bits) {
      std::memcpy(stored.bytes.data() + stored.bytes.size() - static_cast<size_t>(from_end), &bits, sizeof(bits));
    };
    const auto refused = [&] { return error_of([&] { (void)PackedMatrix::pack(stored.view(), threads); }); };
    switch (type) {
      case WeightType::f32:
        put(4, NAN);
        break;
      case WeightType::f64:
        put(8, static_cast<double>(NAN));
        break;
      case WeightType::bf16:
        put(2, uint16_t{0xFF81});
        break;
      case WeightType::f16:
        put(2, uint16_t{0x7C01});
        break;
      case WeightType::f8_e4m3:
      case WeightType::f8_e5m2:
        put(1, uint8_t{0x7F});
        break;
      default:
        if (!is_quantized(type)) continue;
        for (const int64_t offset : test::half_offsets(type)) {
          const auto whole = stored.bytes;
          put(block_of(type).bytes - offset, uint16_t{0x7E00});
          EXPECT_THAT(refused(), HasSubstr("holds NaN"));
          stored.bytes = whole;
        }
        EXPECT_EQ(refused(), "");
        continue;
    }
    EXPECT_THAT(refused(), HasSubstr("shape [20, 256] holds NaN"));
  }
}

// The minimum of a q4_0 block, -8 times its scale, is kept as an f16: 8188 is the last scale that fits.
TEST(PackedMatrix, RefusesScalesThatItCannotKeep) {
  auto stored = test::random_weight(WeightType::q4_0, 1, 32, 1);
  const auto set_scale = [&](float scale) {
    const Float16 half(scale);
    std::memcpy(stored.bytes.data(), &half, sizeof(half));
  };
  set_scale(-8188.0F);
  EXPECT_EQ(row_of(PackedMatrix::pack(stored.view(), Threads(1)), 0), row_of(stored.view(), 0));
  set_scale(8192.0F);
  EXPECT_THAT(error_of([&] { (void)PackedMatrix::pack(stored.view(), Threads(1)); }), HasSubstr("out of range"));
}

TEST(PackedMatrix, DecodesOnlyRowsThatAreThere) {
  const auto packed = PackedMatrix::pack(test::random_weight(WeightType::f32, 3, 8, 1).view(), Threads(1));
  std::vector<float> row(8);
  std::vector<float> narrow(7);
  EXPECT_THROW(packed.decode_row(3, row), Error);
  EXPECT_THROW(packed.decode_row(-1, row), Error);
  EXPECT_THROW(packed.decode_row(0, narrow), Error);
}

}  // namespace
}  // namespace regard
