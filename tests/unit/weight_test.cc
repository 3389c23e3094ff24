// Weights as checkpoints store them, against the published layout of each block, element by element.
#include "regard/weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "regard/error.h"
#include "support/error_of.h"
#include "support/stored_weight.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

struct Block {
  const std::byte* bytes;

  [[nodiscard]] int byte(int64_t i) const { return std::to_integer<int>(bytes[i]); }
  [[nodiscard]] int low(int64_t i) const { return byte(i) % 16; }
  [[nodiscard]] int high(int64_t i) const { return byte(i) / 16; }
  [[nodiscard]] int bit(int64_t i, int64_t index) const { return byte(i) >> index & 1; }
  [[nodiscard]] int signed_byte(int64_t i) const { return byte(i) < 128 ? byte(i) : byte(i) - 256; }
  [[nodiscard]] double half(int64_t i) const {
    Float16 value;
    std::memcpy(&value, bytes + i, 2);
    return static_cast<double>(static_cast<float>(value));
  }
  // Value i of 32 whose first half are the low nibbles of 16 bytes, and whose second half are the high ones.
  [[nodiscard]] int nibble_of_32(int64_t first, int64_t i) const {
    return i < 16 ? low(first + i) : high(first + i - 16);
  }
  // Bit i of 32 that are stored as four bytes, lowest first.
  [[nodiscard]] int bit_of_32(int64_t first, int64_t i) const { return bit(first + i / 8, i % 8); }
  // The 6-bit scale and minimum of group j in the 12 bytes of q4_k and q5_k.
  [[nodiscard]] int k_scale(int64_t j) const {
    return j < 4 ? byte(4 + j) % 64 : low(4 + j + 4) + byte(4 + j - 4) / 64 * 16;
  }
  [[nodiscard]] int k_minimum(int64_t j) const {
    return j < 4 ? byte(4 + j + 4) % 64 : high(4 + j + 4) + byte(4 + j) / 64 * 16;
  }
  // Value i of 256 in q4_k and q5_k: 64 values share 32 bytes.
  [[nodiscard]] int k_nibble(int64_t first, int64_t i) const {
    const int64_t at = first + i / 64 * 32 + i % 32;
    return i % 64 < 32 ? low(at) : high(at);
  }

  [[nodiscard]] double value(WeightType type, int64_t i) const {
    const int64_t group = i / 32;
    switch (type) {
      case WeightType::q8_0:
        return half(0) * signed_byte(2 + i);
      case WeightType::q4_0:
        return half(0) * (nibble_of_32(2, i) - 8);
      case WeightType::q4_1:
        return half(0) * nibble_of_32(4, i) + half(2);
      case WeightType::q5_0:
        return half(0) * (nibble_of_32(6, i) + 16 * bit_of_32(2, i) - 16);
      case WeightType::q5_1:
        return half(0) * (nibble_of_32(8, i) + 16 * bit_of_32(4, i)) + half(2);
      case WeightType::q4_k:
        return half(0) * k_scale(group) * k_nibble(16, i) - half(2) * k_minimum(group);
      case WeightType::q5_k:
        return half(0) * k_scale(group) * (k_nibble(48, i) + 16 * bit(16 + i % 32, group)) - half(2) * k_minimum(group);
      case WeightType::q6_k: {
        const int64_t part = i / 128;
        const int64_t quarter = i % 128 / 32;
        const int64_t at = part * 64 + quarter % 2 * 32 + i % 32;
        const int two = byte(128 + part * 32 + i % 32) >> (2 * quarter) & 3;
        return half(208) * signed_byte(192 + i / 16) * ((quarter < 2 ? low(at) : high(at)) + 16 * two - 32);
      }
      default:
        return std::numeric_limits<double>::quiet_NaN();
    }
  }
};

TEST(Weight, QuantisedBlocksDecodeElementByElement) {
  for (const WeightType type : test::kAllWeightTypes) {
    if (!is_quantized(type)) continue;
    SCOPED_TRACE(name_of(type));
    const auto stored = test::random_weight(type, 3, 512, 11);
    std::vector<float> row(512);
    for (int64_t r = 0; r < 3; ++r) {
      decode_row(stored.view(), r, row);
      for (int64_t i = 0; i < 512; ++i) {
        const WeightBlock size = block_of(type);
        const Block block{stored.bytes.data() + (r * 512 + i) / size.values * size.bytes};
        // The sums are exact in double, so that one rounding gives the very float.
        ASSERT_EQ(row[static_cast<size_t>(i)], static_cast<float>(block.value(type, i % size.values))) << r << ' ' << i;
      }
    }
  }
}

TEST(Weight, UnpackedRowsAreIntegersScalesAndMinimums) {
  for (const WeightType type : test::kAllWeightTypes) {
    if (!is_quantized(type)) continue;
    SCOPED_TRACE(name_of(type));
    const auto stored = test::random_weight(type, 2, 256, 12);
    const auto group = static_cast<size_t>(group_of(type));
    std::vector<int8_t> integers(256);
    std::vector<float> scales(256 / group);
    std::vector<float> minimums(256 / group, -1.0F);
    std::vector<float> row(256);
    unpack_row(stored.view(), 1, {.integers = integers, .scales = scales, .minimums = minimums});
    decode_row(stored.view(), 1, row);
    for (size_t i = 0; i < row.size(); ++i)
      EXPECT_EQ(row[i], static_cast<float>(static_cast<double>(integers[i]) * static_cast<double>(scales[i / group]) +
                                           static_cast<double>(minimums[i / group])));
  }
}

template <class T>
std::vector<float> decoded(WeightType type, const std::vector<T>& values) {
  std::vector<float> row(values.size());
  const auto bytes = std::as_bytes(std::span(values));
  decode_row(WeightView::make(type, 1, static_cast<int64_t>(values.size()), bytes), 0, row);
  return row;
}

TEST(Weight, PlainTypesDecodeToTheNearestFloat) {
  EXPECT_EQ(decoded<float>(WeightType::f32, {1.5F, -0.1F}), (std::vector<float>{1.5F, -0.1F}));
  EXPECT_EQ(decoded<double>(WeightType::f64, {0.1, 1e300}), (std::vector<float>{0.1F, INFINITY}));
  EXPECT_EQ(decoded<uint16_t>(WeightType::bf16, {0x3FC0, 0xC040}), (std::vector<float>{1.5F, -3.0F}));
  EXPECT_EQ(decoded<uint16_t>(WeightType::f16, {0x3E00, 0xC200}), (std::vector<float>{1.5F, -3.0F}));
  EXPECT_EQ(decoded<uint8_t>(WeightType::f8_e4m3, {0x3C, 0xC4}), (std::vector<float>{1.5F, -3.0F}));
  EXPECT_EQ(decoded<uint8_t>(WeightType::f8_e5m2, {0x3E, 0xC2}), (std::vector<float>{1.5F, -3.0F}));
  EXPECT_EQ(decoded<int8_t>(WeightType::i8, {-128, 127}), (std::vector<float>{-128, 127}));
  EXPECT_EQ(decoded<uint8_t>(WeightType::u8, {0, 255}), (std::vector<float>{0, 255}));
  EXPECT_EQ(decoded<uint8_t>(WeightType::boolean, {0, 1}), (std::vector<float>{0, 1}));
  EXPECT_EQ(decoded<int32_t>(WeightType::i32, {16777217, -3}), (std::vector<float>{16777216, -3}));
  EXPECT_EQ(decoded<int64_t>(WeightType::i64, {int64_t{1} << 40, -7}), (std::vector<float>{0x1p40F, -7}));
}

TEST(Weight, MakeRefusesBytesThatAreNotTheShape) {
  const std::vector<std::byte> bytes(36);
  EXPECT_EQ(error_of([&] { (void)WeightView::make(WeightType::q4_0, 2, 32, bytes); }), "");
  EXPECT_THAT(error_of([&] { (void)WeightView::make(WeightType::q4_0, 1, 32, bytes); }), HasSubstr("36 bytes"));
  EXPECT_THAT(error_of([&] { (void)WeightView::make(WeightType::q4_0, 2, 36, bytes); }), HasSubstr("multiple of 32"));
  EXPECT_THAT(error_of([&] { (void)WeightView::make(WeightType::f32, -3, -3, bytes); }), HasSubstr("[-3, -3]"));
  // rows * columns * 4 is 36 modulo 2^64.
  constexpr int64_t kHuge = (int64_t{1} << 62) + 9;
  EXPECT_NE(error_of([&] { (void)WeightView::make(WeightType::f32, 1, kHuge, bytes); }), "");
  EXPECT_NE(error_of([&] { (void)WeightView::make(WeightType::f32, kHuge, 1, bytes); }), "");
}

TEST(Weight, RowsOutsideAreRefused) {
  const auto stored = test::random_weight(WeightType::q8_0, 3, 32, 1);
  const WeightView view = stored.view();
  std::vector<float> row(32);
  std::vector<float> narrow(31);
  EXPECT_THROW((void)view.row(3), Error);
  EXPECT_THROW((void)view.row(-1), Error);
  EXPECT_THROW((void)view.row_range(2, 2), Error);
  EXPECT_THROW((void)view.row_range(-1, 1), Error);
  EXPECT_THROW((void)view.row_range(1, std::numeric_limits<int64_t>::max()), Error);
  EXPECT_THROW(decode_row(view, 3, row), Error);
  EXPECT_THROW(decode_row(view, 0, narrow), Error);
}

TEST(Weight, RowRangesAreTheRowsThemselves) {
  const auto stored = test::random_weight(WeightType::q5_1, 5, 64, 1);
  const WeightView part = stored.view().row_range(2, 3);
  EXPECT_EQ(part.rows, 3);
  for (int64_t r = 0; r < 3; ++r) EXPECT_EQ(part.row(r).data(), stored.view().row(r + 2).data());
}

TEST(Weight, UnpackRefusesPlainTypesAndWrongSizes) {
  const auto plain = test::random_weight(WeightType::f32, 1, 32, 1);
  const auto quantised = test::random_weight(WeightType::q4_1, 1, 32, 1);
  std::vector<int8_t> integers(32);
  std::vector<float> scales(1);
  std::vector<float> minimums(1);
  const QuantizedRow row{.integers = integers, .scales = scales, .minimums = minimums};
  EXPECT_THAT(error_of([&] { unpack_row(plain.view(), 0, row); }), HasSubstr("f32 is not quantised"));
  EXPECT_THROW(unpack_row(quantised.view(), 0, {.integers = integers, .scales = scales, .minimums = {}}), Error);
  EXPECT_THROW(unpack_row(quantised.view(), 1, row), Error);
}

}  // namespace
}  // namespace regard
