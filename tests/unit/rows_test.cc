// Kernels on single rows that no other test reaches by themselves: activation and conversion.
#include "kernels/rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/numbers.h"

namespace regard {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(Silu, IsTheGateTimesItsSigmoidTimesTheOther) {
  std::vector<float> gate;
  for (float x = -30; x <= 30; x += 0.37F) gate.push_back(x);
  const auto up = test::Numbers(131).floats(static_cast<int64_t>(gate.size()));
  auto out = gate;
  kernels::activate({}, up.data(), static_cast<int64_t>(out.size()), out.data());
  for (size_t i = 0; i < out.size(); ++i) {
    const auto x = static_cast<double>(gate[i]);
    const double expected = x / (1 + std::exp(-x)) * static_cast<double>(up[i]);
    // Four roundings, and the argument of exp2 is off by an ulp of |x| log2(e), at most 44.
    EXPECT_NEAR(out[i], expected, std::abs(expected) * (4 + 44) * 0x1p-24) << x;
  }
}

TEST(Silu, SaturatesWithoutOverflowAndKeepsNaN) {
  std::vector<float> gate = {1e30F, -1e30F, 0.0F, -1000.0F, 1000.0F, NAN};
  const std::vector<float> up(gate.size(), 2.0F);
  kernels::activate({}, up.data(), static_cast<int64_t>(gate.size()), gate.data());
  EXPECT_EQ(gate[0], 2e30F);
  EXPECT_EQ(gate[1], 0.0F);
  EXPECT_EQ(gate[2], 0.0F);
  EXPECT_EQ(gate[3], 0.0F);
  EXPECT_EQ(gate[4], 2000.0F);
  EXPECT_TRUE(std::isnan(gate[5]));
}

// A row's numbers do not depend on where it ends: the vector code and the rest agree to the bit.
TEST(Silu, EveryLengthGivesTheSameNumbers) {
  const auto whole_gate = test::Numbers(132).floats(64);
  const auto up = test::Numbers(133).floats(64);
  auto whole = whole_gate;
  kernels::activate({}, up.data(), 64, whole.data());
  for (int64_t count = 1; count < 64; ++count) {
    auto part = whole_gate;
    kernels::activate({}, up.data(), count, part.data());
    for (size_t i = 0; i < 64; ++i) EXPECT_EQ(part[i], i < static_cast<size_t>(count) ? whole[i] : whole_gate[i]);
  }
}

// Ties, the edges of the ranges, denormals, infinities: what the scalar types do, for rows of every length.
template <class T>
void expect_conversions(DType dtype) {
  std::vector<float> values = {0.0F,    -0.0F,   1.00390625F, 1.01171875F, 65519.0F, 65520.0F, 1e-8F,
                               -6e-8F,  3e-5F,   1e38F,       -kInf,       kInf,     0x1p-25F, 0x1.8p-25F,
                               2049.0F, 2051.0F, 0x1p-133F,   1e-45F,      3.4e38F,  -1.5F,    0.1F};
  const auto random = test::Numbers(134).floats(100);
  values.insert(values.end(), random.begin(), random.end());
  for (size_t count = 1; count <= values.size(); ++count) {
    std::vector<T> stored(count);
    kernels::store_floats(values.data(), static_cast<int64_t>(count), dtype,
                          reinterpret_cast<std::byte*>(stored.data()));
    std::vector<float> loaded(count);
    kernels::load_floats(reinterpret_cast<const std::byte*>(stored.data()), dtype, static_cast<int64_t>(count),
                         loaded.data());
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(stored[i].bits, T(values[i]).bits) << values[i] << " of " << count;
      ASSERT_EQ(loaded[i], static_cast<float>(stored[i])) << values[i];
    }
  }
}

TEST(StoreFloats, RoundsAsTheNarrowTypesDo) {
  expect_conversions<BFloat16>(DType::bf16);
  expect_conversions<Float16>(DType::f16);
}

TEST(StoreFloats, NaNStaysNaN) {
  const std::vector<float> nan(20, NAN);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    std::vector<std::byte> stored(40);
    std::vector<float> loaded(20);
    kernels::store_floats(nan.data(), 20, dtype, stored.data());
    kernels::load_floats(stored.data(), dtype, 20, loaded.data());
    for (const float value : loaded) EXPECT_TRUE(std::isnan(value));
  }
}

}  // namespace
}  // namespace regard
