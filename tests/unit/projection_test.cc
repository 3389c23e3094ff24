// Linear layers against the plain product in double, for every stored type.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/panel.h"
#include "kernels/targets.h"
#include "regard/error.h"
#include "regard/linear.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/stored_weight.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

Linear packed(const test::StoredWeight& stored, const std::vector<float>& bias = {}) {
  return Linear::load(stored.view(), bias, Threads(2));
}

void apply_one(const Linear& layer, ConstTensorView x, TensorView out, Workspace& workspace) {
  const std::array<const Linear*, 1> layers = {&layer};
  const std::array<TensorView, 1> outs = {out};
  apply(layers, x, outs, workspace);
}

Tensor product(const Linear& layer, ConstTensorView x, Workspace& workspace) {
  Tensor out(DType::f32, {x.size(0), layer.rows()});
  apply_one(layer, x, out, workspace);
  return out;
}

// x [tokens, columns] times the weight in double. Each of the sum's roundings costs at most 2^-24 of the sum of the
// products' sizes: one a product inside a block of 256, one a block, one for the bias.
void expect_product(const test::StoredWeight& weight, const std::vector<float>& bias, const Tensor& x,
                    ConstTensorView out) {
  const Tensor wide = convert(x, DType::f32);
  std::vector<float> row(static_cast<size_t>(weight.columns));
  const double roundings = static_cast<double>(std::min<int64_t>(weight.columns, 256) + weight.columns / 256 + 2);
  for (int64_t n = 0; n < weight.rows; ++n) {
    decode_row(weight.view(), n, row);
    for (int64_t m = 0; m < x.shape()[0]; ++m) {
      const auto token = wide.view()[m].elements<float>();
      double sum = bias.empty() ? 0.0 : static_cast<double>(bias[static_cast<size_t>(n)]);
      double sizes = std::abs(sum);
      for (size_t k = 0; k < row.size(); ++k) {
        const double term = static_cast<double>(token[k]) * static_cast<double>(row[k]);
        sum += term;
        sizes += std::abs(term);
      }
      ASSERT_NEAR(out[m].as<float>()[n], sum, roundings * 0x1p-24 * sizes) << "row " << m << " column " << n;
    }
  }
}

TEST(Projection, EqualsThePlainProductForEveryWeightType) {
  Workspace workspace(2);
  for (const WeightType type : test::kAllWeightTypes) {
    SCOPED_TRACE(name_of(type));
    const auto weight = test::random_weight(type, 23, 768, 31);
    const Linear layer = packed(weight);
    for (const int64_t tokens : {1, 2, 5, 12, 13, 33, 70}) {
      const Tensor x = test::Numbers(static_cast<uint64_t>(tokens)).tensor({tokens, 768});
      expect_product(weight, {}, x, product(layer, x, workspace));
    }
  }
}

// Shapes around the kernels' tiles of 16 rows and blocks of 256 columns.
TEST(Projection, EqualsThePlainProductForEveryShape) {
  Workspace workspace(2);
  for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::f16})
    for (const int64_t rows : {1, 15, 16, 17, 70, 200})
      for (const int64_t columns : {1, 3, 16, 255, 256, 257, 520}) {
        SCOPED_TRACE(::testing::Message() << name_of(type) << ' ' << rows << ' ' << columns);
        const auto weight = test::random_weight(type, rows, columns, 32);
        const Tensor x = test::Numbers(7).tensor({9, columns});
        expect_product(weight, {}, x, product(packed(weight), x, workspace));
      }
}

// Columns that cut through quantised groups: the panel's groups are smaller, and the kernels multiply the same numbers.
TEST(Projection, CutColumnsMultiplyAsTheSameColumnsInF32) {
  Workspace workspace(2);
  for (const WeightType type : test::kAllWeightTypes)
    for (const int64_t width : {32, 16, 8, 4, 2, 3}) {
      SCOPED_TRACE(::testing::Message() << name_of(type) << ", cut every " << width);
      const auto weight = test::random_weight(type, 50, 768, 38);
      std::vector<Columns> columns;
      for (int64_t first = 768 - width; first >= 0; first -= 2 * width)
        columns.push_back({.first = columns.size() % 5 == 4 ? -1 : first, .count = width});
      const Linear layer = Linear::load(weight.view(), {}, Threads(1), {}, columns);
      std::vector<float> values(static_cast<size_t>(50 * layer.columns()));
      for (int64_t row = 0; row < 50; ++row)
        layer.weight().decode_row(row, std::span(values).subspan(static_cast<size_t>(row * layer.columns()),
                                                                 static_cast<size_t>(layer.columns())));
      const auto plain = WeightView::make(WeightType::f32, 50, layer.columns(), std::as_bytes(std::span(values)));
      const Linear same = Linear::load(plain, {}, Threads(1));
      for (const int64_t tokens : {1, 13, 70}) {
        const Tensor x = test::Numbers(15).tensor({tokens, layer.columns()});
        EXPECT_EQ(test::bytes_of(product(layer, x, workspace)), test::bytes_of(product(same, x, workspace))) << tokens;
      }
    }
}

// The order of a sum as docs/numerics.md has it: chains of fused multiply-adds, the chains of a block of 256, the
// blocks.
float sum_in_chains(const float* x, const float* w, int64_t columns) {
  const int64_t chain = columns <= 512 ? 32 : 128;
  float total = 0.0F;
  for (int64_t block = 0; block < columns; block += 256) {
    float block_sum = 0.0F;
    for (int64_t first = block; first < std::min(block + 256, columns); first += chain) {
      float sum = 0.0F;
      for (int64_t k = first; k < std::min({first + chain, block + 256, columns}); ++k) sum = std::fma(x[k], w[k], sum);
      block_sum += sum;
    }
    total += block_sum;
  }
  return total;
}

TEST(Projection, SumsInChainsThatOnlyTheColumnsDecide) {
  if (!kernels::target_has_fma(kernels::target_name())) GTEST_SKIP() << "no fused multiply-add";
  Workspace workspace(2);
  for (const WeightType type :
       {WeightType::f32, WeightType::bf16, WeightType::q8_0, WeightType::q4_1, WeightType::q6_k})
    for (const int64_t columns : {120, 256, 512, 576, 1024}) {
      if (columns % block_of(type).values != 0) continue;
      const auto weight = test::random_weight(type, 70, columns, 33);
      const Linear layer = packed(weight);
      for (const int64_t tokens : {1, 4, 13, 70}) {
        SCOPED_TRACE(::testing::Message() << name_of(type) << ' ' << columns << ' ' << tokens);
        const Tensor x = test::Numbers(8).tensor({tokens, columns});
        const Tensor out = product(layer, x, workspace);
        std::vector<float> row(static_cast<size_t>(columns));
        for (int64_t n = 0; n < weight.rows; ++n) {
          decode_row(weight.view(), n, row);
          for (int64_t m = 0; m < tokens; ++m)
            ASSERT_EQ(out.view()[m].as<float>()[n], sum_in_chains(x.view()[m].as<float>(), row.data(), columns));
        }
      }
    }
}

// Groups that share a scale may be longer than a chain of a product of few columns.
TEST(Projection, GroupsThatAreLongerThanAChainAreRead) {
  Workspace workspace(2);
  for (const int64_t group : {64, 128, 256}) {
    const auto values = test::random_weight(WeightType::i8, 40, 512, 35);
    const auto scales = test::random_weight(WeightType::f32, 40, 512 / group, 36);
    StoredMatrix matrix(values.view());
    matrix.scales = scales.view();
    matrix.group = group;
    const Linear layer = Linear::load(matrix, {}, Threads(1));
    ASSERT_EQ(layer.weight().panel().group, group);
    std::vector<float> row(512);
    for (const int64_t tokens : {1, 4, 70}) {
      const Tensor x = test::Numbers(37).tensor({tokens, 512});
      const Tensor out = product(layer, x, workspace);
      for (int64_t n = 0; n < 40; ++n) {
        decode_row(matrix, n, row);
        for (int64_t m = 0; m < tokens; ++m) {
          double expected = 0, magnitude = 0;
          for (size_t k = 0; k < row.size(); ++k) {
            const double term = static_cast<double>(row[k]) * static_cast<double>(x.view()[m].as<float>()[k]);
            expected += term;
            magnitude += std::fabs(term);
          }
          ASSERT_NEAR(out.view()[m].as<float>()[n], expected, 1e-6 * magnitude) << group << ' ' << tokens;
        }
      }
    }
  }
}

TEST(Projection, ReadsF32BF16AndF16Inputs) {
  Workspace workspace(2);
  for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::q4_k})
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      SCOPED_TRACE(::testing::Message() << name_of(type) << ' ' << name_of(dtype));
      const auto weight = test::random_weight(type, 20, 256, 33);
      const Tensor x = test::Numbers(8).tensor({6, 256}, dtype);
      expect_product(weight, {}, x, product(packed(weight), x, workspace));
    }
}

// A row's numbers do not know how many others were there: the promise of schedule invariance.
TEST(Projection, ARowAloneHasTheSameBitsAsAmongOthers) {
  Workspace one(1);
  Workspace three(3);
  for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::f16, WeightType::q8_0, WeightType::q4_0,
                                WeightType::q4_k, WeightType::q5_k, WeightType::q6_k}) {
    SCOPED_TRACE(name_of(type));
    const Linear layer = packed(test::random_weight(type, 37, 512, 34));
    const Tensor x = test::Numbers(9).tensor({250, 512});
    std::vector<std::vector<std::byte>> alone;
    for (int64_t m = 0; m < 250; ++m) alone.push_back(test::bytes_of(product(layer, x.view().slice(0, m, 1), one)));
    for (int64_t tokens = 1; tokens <= 250; tokens += tokens < 70 ? 1 : 60) {
      const Tensor out = product(layer, x.view().slice(0, 0, tokens), three);
      for (int64_t m = 0; m < tokens; ++m)
        ASSERT_EQ(test::bytes_of(out.view()[m]), alone[static_cast<size_t>(m)]) << tokens << ' ' << m;
    }
  }
}

TEST(Projection, StridedInputsAndOutputsAreReadAndWrittenInPlace) {
  Workspace workspace(2);
  const auto weight = test::random_weight(WeightType::f32, 21, 40, 35);
  const Linear layer = packed(weight);
  const Tensor wide = test::Numbers(10).tensor({7, 100});
  const Tensor out(DType::f32, {7, 30});
  std::ranges::fill(out.elements<float>(), -77.0F);
  const auto part = wide.view().slice(1, 33, 40);
  apply_one(layer, part, out.view().slice(1, 5, 21), workspace);
  expect_product(weight, {}, convert(part, DType::f32), convert(out.view().slice(1, 5, 21), DType::f32));
  for (int64_t m = 0; m < 7; ++m)
    for (const int64_t column : {0, 4, 26, 29}) EXPECT_EQ(out.view()[m].as<float>()[column], -77.0F);
}

TEST(Projection, BiasesAreAddedToEveryRow) {
  Workspace workspace(2);
  for (const int64_t rows : {5, 16, 100}) {
    const auto weight = test::random_weight(WeightType::bf16, rows, 33, 36);
    const auto bias = test::Numbers(11).floats(rows);
    const Tensor x = test::Numbers(12).tensor({300, 33});
    expect_product(weight, bias, x, product(packed(weight, bias), x, workspace));
  }
}

TEST(Projection, LayersTogetherHaveTheBitsOfEachAlone) {
  Workspace workspace(2);
  const std::array<Linear, 3> layers = {
      packed(test::random_weight(WeightType::f32, 48, 256, 1)),
      packed(test::random_weight(WeightType::q4_1, 7, 256, 2), std::vector<float>(7, 1.0F)),
      packed(test::random_weight(WeightType::q6_k, 300, 256, 3))};
  const Tensor x = test::Numbers(13).tensor({11, 256});
  const std::array<const Linear*, 3> pointers = {&layers[0], &layers[1], &layers[2]};
  const std::array<Tensor, 3> outs = {Tensor(DType::f32, {11, 48}), Tensor(DType::f32, {11, 7}),
                                      Tensor(DType::f32, {11, 300})};
  const std::array<TensorView, 3> views = {outs[0], outs[1], outs[2]};
  apply(pointers, x, views, workspace);
  for (size_t i = 0; i < 3; ++i)
    EXPECT_EQ(test::bytes_of(outs[i]), test::bytes_of(product(layers[i], x, workspace))) << i;
}

TEST(Projection, NoRowsIsNoWork) {
  Workspace workspace(2);
  const Linear layer = packed(test::random_weight(WeightType::f32, 5, 8, 1));
  EXPECT_EQ(product(layer, Tensor(DType::f32, {0, 8}), workspace).shape(), (Shape{0, 5}));
}

// NaN and infinity in one row stay in that row.
TEST(Projection, ANaNReachesItsOwnRowAndNoOther) {
  Workspace workspace(2);
  const Linear layer = packed(test::random_weight(WeightType::f32, 20, 64, 37));
  const Tensor x = test::Numbers(14).tensor({14, 64});
  const auto clean = product(layer, x, workspace);
  x.elements<float>()[5 * 64 + 63] = NAN;
  const auto dirty = product(layer, x, workspace);
  for (int64_t m = 0; m < 14; ++m)
    for (int64_t n = 0; n < 20; ++n) {
      if (m == 5)
        EXPECT_TRUE(std::isnan(dirty.view()[m].as<float>()[n]));
      else
        EXPECT_EQ(dirty.view()[m].as<float>()[n], clean.view()[m].as<float>()[n]);
    }
}

TEST(Projection, RefusesShapesAndTypesThatDoNotFit) {
  Workspace workspace(1);
  const Linear layer = packed(test::random_weight(WeightType::f32, 5, 8, 1));
  const Tensor out(DType::f32, {3, 5});
  const auto refusal = [&](const Tensor& x, const Tensor& to) {
    return error_of([&] { apply_one(layer, x, to, workspace); });
  };
  EXPECT_THAT(refusal(Tensor(DType::f32, {3, 9}), out), HasSubstr("9 columns, expected 8"));
  EXPECT_THAT(refusal(Tensor(DType::f32, {24}), out), HasSubstr("shape [24]"));
  EXPECT_THAT(refusal(Tensor(DType::f64, {3, 8}), out), HasSubstr("dtype f64"));
  EXPECT_THAT(refusal(Tensor(DType::f32, {2, 8}), out), HasSubstr("output has shape [3, 5], expected [2, 5]"));
  EXPECT_NE(refusal(Tensor(DType::f32, {3, 8}), Tensor(DType::bf16, {3, 5})), "");
  const std::vector<const Linear*> many(9, &layer);
  const std::vector<TensorView> outs(9, out);
  EXPECT_THAT(error_of([&] { apply(many, Tensor(DType::f32, {3, 8}), outs, workspace); }), HasSubstr("at most 8"));
}

}  // namespace
}  // namespace regard
