#include "support/block_formats.h"

#include <gtest/gtest.h>

#include <random>

#include "regard/linear.h"
#include "regard/tensor.h"

namespace regard {
namespace {

constexpr std::array kBlockTypes = {WeightType::q8_0, WeightType::q4_0, WeightType::q4_1, WeightType::q5_0,
                                    WeightType::q5_1, WeightType::q4_k, WeightType::q5_k, WeightType::q6_k};
constexpr int64_t kRows = 33;
constexpr int64_t kColumns = 512;

// Any bits, but f16 factors below 512: larger ones, and what is no number, no weight has.
std::vector<std::byte> random_blocks(WeightType type, uint32_t seed) {
  std::mt19937 generator(seed);
  const WeightBlock block = block_of(type);
  std::vector<std::byte> bytes(static_cast<size_t>(kRows * kColumns / block.values * block.bytes));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(generator() & 0xFF);
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(block.bytes))
    for (const size_t place : test::half_places(type))
      if ((bytes[at + place + 1] & std::byte{0x60}) == std::byte{0x60}) bytes[at + place + 1] &= std::byte{0xBF};
  return bytes;
}

// One rounding, from the exact value.
float expected_value(const WeightView& weight, int64_t row, int64_t column) {
  const WeightBlock block = block_of(weight.type);
  const auto bytes = weight.row(row).subspan(static_cast<size_t>(column / block.values * block.bytes),
                                             static_cast<size_t>(block.bytes));
  return static_cast<float>(test::block_value(weight.type, bytes, static_cast<size_t>(column % block.values)));
}

TEST(BlockFormats, EveryTypeDecodesToItsPublishedNumbers) {
  for (const WeightType type : kBlockTypes) {
    SCOPED_TRACE(name_of(type));
    const auto bytes = random_blocks(type, 1);
    const auto weight = WeightView::make(type, kRows, kColumns, bytes);
    std::vector<float> values(kColumns);
    for (int64_t row = 0; row < kRows; ++row) {
      decode_row(weight, row, values);
      for (int64_t column = 0; column < kColumns; ++column)
        ASSERT_EQ(values[static_cast<size_t>(column)], expected_value(weight, row, column)) << row << ", " << column;
    }
  }
}

TEST(BlockFormats, PackedMatricesKeepTheNumbers) {
  for (const WeightType type : kBlockTypes) {
    SCOPED_TRACE(name_of(type));
    const auto bytes = random_blocks(type, 2);
    const auto weight = WeightView::make(type, kRows, kColumns, bytes);
    const auto packed = PackedMatrix::pack(weight, Threads(1));
    std::vector<float> values(kColumns);
    for (int64_t row = 0; row < kRows; ++row) {
      packed.decode_row(row, values);
      for (int64_t column = 0; column < kColumns; ++column)
        ASSERT_EQ(values[static_cast<size_t>(column)], expected_value(weight, row, column)) << row << ", " << column;
    }
  }
}

TEST(BlockFormats, FactorsThatAreNoNumbersOrDoNotFitAreRefusedWhenPacked) {
  for (const WeightType type : kBlockTypes) {
    auto bytes = random_blocks(type, 4);
    const size_t high_byte = test::half_places(type).back() + 1;
    bytes[high_byte] = std::byte{0x7E};
    EXPECT_THROW((void)PackedMatrix::pack(WeightView::make(type, kRows, kColumns, bytes), Threads(1)), Error)
        << name_of(type);
  }
  auto bytes = random_blocks(WeightType::q4_0, 5);
  bytes[1] = std::byte{0x70};  // 8192 and more, of which -8 times is past the largest f16
  EXPECT_THROW((void)PackedMatrix::pack(WeightView::make(WeightType::q4_0, kRows, kColumns, bytes), Threads(1)), Error);
}

TEST(BlockFormats, RowsThatAreNoWholeBlocksOrBytesThatDoNotFitAreRefused) {
  for (const WeightType type : kBlockTypes) {
    const auto bytes = random_blocks(type, 3);
    EXPECT_THROW((void)WeightView::make(type, kRows, kColumns + 1, bytes), Error);
    EXPECT_THROW((void)WeightView::make(type, kRows + 1, kColumns, bytes), Error);
    EXPECT_THROW((void)WeightView::make(type, kRows, kColumns, std::span(bytes).first(bytes.size() - 1)), Error);
    EXPECT_THROW((void)WeightView::make(type, -1, -kColumns, bytes), Error);
    EXPECT_THROW((void)WeightView::make(type, int64_t{1} << 40, int64_t{1} << 40, bytes), Error);
  }
}

}  // namespace
}  // namespace regard
