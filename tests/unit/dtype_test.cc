#include "regard/dtype.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "regard/error.h"
#include "regard/tensor.h"
#include "regard/weight.h"
#include "support/error_of.h"

namespace regard {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(DType, NamesRoundTripAndUnknownOnesAreRefused) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::f8_e4m3, DType::f8_e5m2, DType::i8,
                            DType::i4, DType::u8, DType::i32, DType::i64, DType::boolean})
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
  EXPECT_THROW((void)dtype_from_name("float"), Error);
}

TEST(DType, NoTensorHoldsFourBits) {
  for (const auto& use : {std::function<void()>([] { (void)size_of(DType::i4); }),
                          std::function<void()>([] { (void)Tensor(DType::i4, {2}); }),
                          std::function<void()>([] { (void)weight_type_of(DType::i4); })})
    EXPECT_THAT(test::error_of(use), ::testing::HasSubstr("dtype is i4, which only caches hold"));
}

template <class Narrow>
void every_value_survives_the_way_through_f32(uint32_t count) {
  for (uint32_t bits = 0; bits < count; ++bits) {
    Narrow value;
    value.bits = static_cast<decltype(value.bits)>(bits);
    const auto wide = static_cast<float>(value);
    if (std::isnan(wide))
      EXPECT_TRUE(std::isnan(static_cast<float>(Narrow(wide)))) << bits;
    else
      EXPECT_EQ(Narrow(wide).bits, value.bits);
  }
}

TEST(DType, EveryNarrowValueSurvivesTheWayThroughF32) {
  every_value_survives_the_way_through_f32<BFloat16>(1U << 16);
  every_value_survives_the_way_through_f32<Float16>(1U << 16);
  every_value_survives_the_way_through_f32<Float8E4M3>(1U << 8);
  every_value_survives_the_way_through_f32<Float8E5M2>(1U << 8);
}

// Between every two neighbours: the midpoint goes to the even one, a hair more or less to the nearer one.
template <class Narrow>
void rounds_to_nearest_even(uint32_t largest_finite) {
  for (uint32_t bits = 0; bits < largest_finite; ++bits) {
    Narrow low;
    Narrow high;
    low.bits = static_cast<decltype(low.bits)>(bits);
    high.bits = static_cast<decltype(low.bits)>(bits + 1);
    const float middle = (static_cast<float>(low) + static_cast<float>(high)) / 2;
    EXPECT_EQ(Narrow(middle).bits, bits % 2 == 0 ? low.bits : high.bits) << bits;
    EXPECT_EQ(Narrow(std::nextafter(middle, 0.0F)).bits, low.bits) << bits;
    EXPECT_EQ(Narrow(std::nextafter(middle, kInf)).bits, high.bits) << bits;
  }
}

TEST(DType, RoundsToNearestEven) {
  rounds_to_nearest_even<Float16>(0x7BFF);
  rounds_to_nearest_even<Float8E4M3>(0x7E);
  rounds_to_nearest_even<Float8E5M2>(0x7B);
  EXPECT_EQ(BFloat16(1.00390625F).bits, 0x3F80);  // halfway between 0x3F80 and 0x3F81
  EXPECT_EQ(BFloat16(1.01171875F).bits, 0x3F82);  // halfway between 0x3F81 and 0x3F82
}

TEST(DType, OverflowFollowsEachFormat) {
  EXPECT_EQ(static_cast<float>(Float16(65519.0F)), 65504.0F);
  EXPECT_EQ(static_cast<float>(Float16(65520.0F)), kInf);
  EXPECT_EQ(static_cast<float>(Float8E4M3(448.0F)), 448.0F);
  EXPECT_EQ(static_cast<float>(Float8E4M3(464.0F)), 448.0F);  // the midpoint's even neighbour
  EXPECT_TRUE(std::isnan(static_cast<float>(Float8E4M3(480.0F))));
  EXPECT_TRUE(std::isnan(static_cast<float>(Float8E4M3(kInf))));
  EXPECT_EQ(static_cast<float>(Float8E5M2(-1e9F)), -kInf);
  EXPECT_EQ(static_cast<float>(BFloat16(std::numeric_limits<float>::max())), kInf);
}

}  // namespace
}  // namespace regard
