// How tokens lie in the panels of a cache, and what 8 bits and 4 keep of them.
#include "kernels/cache_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "support/numbers.h"
#include "support/rounding.h"

namespace regard {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16, DType::f8_e4m3, DType::f8_e5m2, DType::i8, DType::i4};
constexpr DType kScaledTypes[] = {DType::f8_e4m3, DType::f8_e5m2, DType::i8, DType::i4};

// A page of one head, with room for keys or values.
struct Page {
  static constexpr int64_t kTokens = 32;
  std::vector<std::byte> bytes;
  std::vector<float> scales = std::vector<float>(kTokens);
  kernels::HeadPanel panel;

  Page(DType dtype, int64_t width)
      : bytes(static_cast<size_t>(kTokens * kernels::tiles(width) * kernels::row_bytes_of_cache(dtype))),
        panel{.data = bytes.data(),
              .scales = kernels::has_token_scales(dtype) ? scales.data() : nullptr,
              .dtype = dtype,
              .page_tokens = kTokens} {}
};

kernels::TokenRows rows_of(const std::vector<float>& numbers, int64_t first, int64_t count, int64_t width) {
  return {.data = numbers.data() + first * width, .stride = width, .count = count, .width = width};
}

// [token/16][d][token%16] for keys, [d/16][token][d%16] for values; written singly and as whole tiles.
TEST(CacheRows, KeysAndValuesLieWhereTheKernelsReadThem) {
  constexpr int64_t kKeyWidth = 70;
  constexpr int64_t kValueWidth = 20;
  std::vector<float> numbers(static_cast<size_t>(Page::kTokens * kKeyWidth));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i + 1);
  for (const int64_t step : {1, 5, 16}) {
    SCOPED_TRACE(step);
    Page keys(DType::f32, kKeyWidth);
    Page values(DType::f32, kValueWidth);
    for (int64_t token = 0; token < Page::kTokens;) {
      const int64_t count = std::min(step, (token / 16 + 1) * 16 - token);
      kernels::store_keys(rows_of(numbers, token, count, kKeyWidth), token, keys.panel);
      kernels::store_values(rows_of(numbers, token, count, kValueWidth), token, values.panel);
      token += count;
    }
    const auto at = [](const Page& page, int64_t index) {
      return reinterpret_cast<const float*>(page.bytes.data())[index];
    };
    for (int64_t token = 0; token < Page::kTokens; ++token) {
      for (int64_t d = 0; d < kKeyWidth; ++d)
        ASSERT_EQ(at(keys, token / 16 * kKeyWidth * 16 + d * 16 + token % 16),
                  static_cast<float>(token * kKeyWidth + d + 1));
      for (int64_t d = 0; d < kValueWidth; ++d)
        ASSERT_EQ(at(values, d / 16 * Page::kTokens * 16 + token * 16 + d % 16),
                  static_cast<float>(token * kValueWidth + d + 1));
    }
  }
}

TEST(CacheRows, AWholeTileIsStoredAsItsTokensAre) {
  constexpr int64_t kWidth = 52;
  const auto numbers = test::Numbers(301).floats(16 * kWidth);
  for (const DType dtype : kTypes) {
    SCOPED_TRACE(name_of(dtype));
    for (const auto store : {kernels::store_keys, kernels::store_values}) {
      Page at_once(dtype, kWidth);
      Page singly(dtype, kWidth);
      store(rows_of(numbers, 0, 16, kWidth), 16, at_once.panel);
      for (int64_t token = 0; token < 16; ++token) store(rows_of(numbers, token, 1, kWidth), 16 + token, singly.panel);
      EXPECT_EQ(at_once.bytes, singly.bytes);
      EXPECT_EQ(at_once.scales, singly.scales);
    }
  }
}

// Byte i of a row of sixteen holds the i-th number + 8 in its low half and the one eight further in its high half.
TEST(CacheRows, FourBitsLieAsTheKernelsReadThem) {
  constexpr int64_t kWidth = 16;
  std::vector<float> numbers;
  for (int i = 0; i < 16 * 16; ++i) numbers.push_back(static_cast<float>((i / 16 + i) % 16 - 8));
  Page keys(DType::i4, kWidth);
  Page values(DType::i4, kWidth);
  kernels::store_keys(rows_of(numbers, 0, 16, kWidth), 16, keys.panel);
  kernels::store_values(rows_of(numbers, 0, 16, kWidth), 16, values.panel);
  for (int row = 0; row < 16; ++row)
    for (int i = 0; i < 8; ++i) {
      // Row and column can be exchanged in these numbers.
      const auto byte = static_cast<std::byte>((row + i) % 16 | (row + i + 8) % 16 << 4);
      EXPECT_EQ(keys.bytes[static_cast<size_t>(16 * 8 + row * 8 + i)], byte) << row << ' ' << i;
      EXPECT_EQ(values.bytes[static_cast<size_t>(16 * 8 + row * 8 + i)], byte) << row << ' ' << i;
    }
}

// As in GGUF's Q4_0 the scale has the sign that makes the element of largest magnitude -8: it is exact, and only its
// opposite, which would be 8, is cut off. Of two opposites the first one wins.
TEST(CacheRows, FourBitsFollowTheSignOfTheirLargestElement) {
  const std::vector<std::vector<float>> rows = {
      {0.5F, -4, 3.5F, -3.5F}, {0.5F, 4, 3.5F, -3.5F}, {1, -4, 4, 0}, {1, 4, -4, 0}};
  const std::vector<std::vector<float>> kept = {
      {0.5F, -4, 3.5F, -3.5F}, {0.5F, 4, 3.5F, -3.5F}, {1, -4, 3.5F, 0}, {1, 4, -3.5F, 0}};
  const std::vector<float> scales = {0.5F, -0.5F, 0.5F, -0.5F};
  for (size_t i = 0; i < rows.size(); ++i) {
    // Side by side, and in different vectors.
    for (const size_t distance : {size_t{1}, size_t{7}, size_t{20}}) {
      SCOPED_TRACE(::testing::Message() << i << ", distance " << distance);
      std::vector<float> row(4 * distance, 0.0F);
      std::vector<float> expected = row;
      for (size_t j = 0; j < 4; ++j) {
        row[(j + 1) * distance - 1] = rows[i][j];
        expected[(j + 1) * distance - 1] = kept[i][j];
      }
      const auto width = static_cast<int64_t>(row.size());
      std::vector<float> back(row.size());
      Page page(DType::i4, width);
      kernels::store_values(rows_of(row, 0, 1, width), 3, page.panel);
      kernels::load_value(page.panel, 3, width, back.data());
      EXPECT_EQ(back, expected);
      EXPECT_EQ(page.scales[3], scales[i]);
    }
  }
}

// A token is written over what was there, and over nothing else, even if it is all NaN.
TEST(CacheRows, ATokenLeavesItsNeighboursAlone) {
  constexpr int64_t kWidth = 36;
  const auto old = test::Numbers(303).floats(16 * kWidth);
  auto fresh = test::Numbers(304).floats(16 * kWidth);
  fresh[7 * kWidth + 3] = std::numeric_limits<float>::quiet_NaN();
  for (const DType dtype : kTypes)
    for (const auto& [store, load] : {std::pair(&kernels::store_keys, &kernels::load_key),
                                      std::pair(&kernels::store_values, &kernels::load_value)}) {
      Page before(dtype, kWidth);
      Page all_fresh(dtype, kWidth);
      store(rows_of(old, 0, 16, kWidth), 0, before.panel);
      store(rows_of(fresh, 0, 16, kWidth), 0, all_fresh.panel);
      Page page(dtype, kWidth);
      store(rows_of(old, 0, 16, kWidth), 0, page.panel);
      store(rows_of(fresh, 6, 3, kWidth), 6, page.panel);
      for (int64_t token = 0; token < 16; ++token) {
        SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << token);
        std::vector<float> actual(kWidth);
        std::vector<float> expected(kWidth);
        load(page.panel, token, kWidth, actual.data());
        load(token >= 6 && token < 9 ? all_fresh.panel : before.panel, token, kWidth, expected.data());
        EXPECT_THAT(actual, ::testing::Pointwise(::testing::NanSensitiveFloatEq(), expected));
      }
    }
}

// With the type's extreme as a largest element the scale is 1, and what comes back is what the scalar
// conversions of the type give: for all sizes, ties and the smallest numbers included.
TEST(CacheRows, ScaledTypesRoundToNearestEven) {
  for (const DType dtype : kScaledTypes) {
    SCOPED_TRACE(name_of(dtype));
    const float extreme = test::extreme_of(dtype);
    std::vector<float> row = {extreme, -extreme, 0.0F, -0.0F, 0.5F, 1.5F, 2.5F, -2.5F};
    for (float size = std::abs(extreme); size > 0x1p-18F; size *= 0.77F) {
      row.push_back(size);
      row.push_back(-size);
    }
    for (int e = -18; e < 5; ++e)
      for (const float tie : {1.0F, 1.0625F, 1.125F, 1.1875F, 1.375F})
        row.push_back(std::min(std::ldexp(tie, e), std::abs(extreme)));
    const auto width = static_cast<int64_t>(row.size());
    std::vector<float> back(row.size());
    Page keys(dtype, width);
    kernels::store_keys(rows_of(row, 0, 1, width), 3, keys.panel);
    kernels::load_key(keys.panel, 3, width, back.data());
    for (size_t i = 0; i < row.size(); ++i) EXPECT_EQ(back[i], test::rounded(row[i], dtype)) << row[i];
    Page values(dtype, width);
    kernels::store_values(rows_of(row, 0, 1, width), 3, values.panel);
    kernels::load_value(values.panel, 3, width, back.data());
    for (size_t i = 0; i < row.size(); ++i) EXPECT_EQ(back[i], test::rounded(row[i], dtype)) << row[i];
  }
}

// The scale makes the largest element the type's extreme, so that its error is a matter of the type only.
TEST(CacheRows, EachTokensScaleFollowsItsLargestElement) {
  constexpr int64_t kWidth = 40;
  for (const DType dtype : kScaledTypes)
    for (const float size : {1e-20F, 0.01F, 1.0F, 1e5F, 1e30F}) {
      SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << size);
      auto row = test::Numbers(302).floats(kWidth);
      float top = 0;
      for (float& x : row) top = std::max(top, std::abs(x *= size));
      Page page(dtype, kWidth);
      std::vector<float> back(kWidth);
      kernels::store_keys(rows_of(row, 0, 1, kWidth), 0, page.panel);
      kernels::load_key(page.panel, 0, kWidth, back.data());
      // Half a unit of i8, a whole one of i4, which cuts off at 7; of fp8, half a unit of the mantissa, for numbers
      // near the largest.
      const float share = dtype == DType::i8 ? 0.5F / 127 : dtype == DType::f8_e4m3 ? 1.0F / 16 : 1.0F / 8;
      for (size_t i = 0; i < row.size(); ++i) EXPECT_NEAR(back[i], row[i], top * share * 1.0001F);
    }
}

TEST(CacheRows, ZerosStayZerosAndSpecialNumbersMakeTheTokenNan) {
  constexpr int64_t kWidth = 20;
  for (const DType dtype : kScaledTypes) {
    SCOPED_TRACE(name_of(dtype));
    Page page(dtype, kWidth);
    std::vector<float> back(kWidth);
    std::vector<float> row(kWidth, 0.0F);
    kernels::store_values(rows_of(row, 0, 1, kWidth), 0, page.panel);
    kernels::load_value(page.panel, 0, kWidth, back.data());
    EXPECT_EQ(back, row);
    for (const float special : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                -std::numeric_limits<float>::infinity()}) {
      row.assign(kWidth, 1.0F);
      row[17] = special;
      kernels::store_values(rows_of(row, 0, 1, kWidth), 1, page.panel);
      kernels::load_value(page.panel, 1, kWidth, back.data());
      for (const float x : back) EXPECT_TRUE(std::isnan(x));
    }
  }
}

}  // namespace
}  // namespace regard
