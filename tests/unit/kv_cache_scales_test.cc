// Scales that are given, to keys and values apart.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "layers/oracle.h"
#include "regard/attend.h"
#include "regard/cache.h"
#include "support/attend_oracle.h"
#include "support/error_of.h"
#include "support/expect_error.h"
#include "support/numbers.h"
#include "support/rounding.h"
#include "support/small_cache.h"

namespace regard {
namespace {

using test::append;
using test::error_of;
using test::two_head_layer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One KV head of width 4 for keys, one token.
std::vector<float> stored(const KvFormat& format, const std::vector<float>& numbers) {
  AttentionConfig config{.hidden_size = 4, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 4};
  auto cache = KvCache::contiguous({.slots = 1, .capacity = 1, .keys = format, .values = format}, config);
  const ConstTensorView rows(numbers.data(), {1, 1, 4});
  cache.append({.slot = 0, .count = 1}, rows, rows);
  const auto [keys, values] = cache.read(0, 0, 1);
  EXPECT_EQ(test::bytes_of(keys), test::bytes_of(values));
  return test::floats_of(keys);
}

KvFormat given(DType dtype, std::vector<float> scales, KvScaling scaling = KvScaling::per_tensor) {
  return {.dtype = dtype, .scaling = scaling, .scales = std::move(scales)};
}

// [KV-42]: number / scale to nearest even, cut off at the type's limits; [KV-41]: without scales they are 1.
TEST(KvCacheScales, GivenScalesRoundToNearestEvenUpToTheTypesLimits) {
  using enum DType;
  EXPECT_THAT(stored(given(i8, {0.5F}), {0.25F, 0.75F, -0.25F, -1.25F}), ElementsAre(0, 1, 0, -1));
  EXPECT_THAT(stored(given(i8, {0.5F}), {63.5F, 1000, -64, -1000}), ElementsAre(63.5F, 63.5F, -64, -64));
  EXPECT_THAT(stored(given(i8, {2}), {kInfinity, -kInfinity, 253, 255.5F}), ElementsAre(254, -256, 252, 254));
  EXPECT_THAT(stored(given(i8, {}), {2.5F, 3.5F, 127.6F, -128.6F}), ElementsAre(2, 4, 127, -128));
  // Ties of the quotient: times 1/7, rounded, they would be a little more.
  EXPECT_THAT(stored(given(i8, {7}), {45.5F, 87.5F, 101.5F, -157.5F}), ElementsAre(42, 84, 98, -154));
  EXPECT_THAT(stored(given(f8_e4m3, {}), {448, 449, 1e9F, -1e9F}), ElementsAre(448, 448, 448, -448));
  EXPECT_THAT(stored(given(f8_e4m3, {2}), {896, 480, -2000, 17 * 2}), ElementsAre(896, 480, -896, 32));
  EXPECT_THAT(stored(given(f8_e4m3, {}), {17, 19, 1.0625F, 1.1875F}), ElementsAre(16, 20, 1, 1.25F));
  EXPECT_THAT(stored(given(f8_e5m2, {}), {57344, 6e4F, kInfinity, -1e9F}), ElementsAre(57344, 57344, 57344, -57344));
  EXPECT_THAT(stored(given(f8_e5m2, {0.25F}), {9 * 0.25F, 11 * 0.25F, 0, 2e4F}), ElementsAre(2, 3, 0, 14336));
  for (const DType dtype : {i8, f8_e4m3, f8_e5m2})
    for (const float number : stored(given(dtype, {1}), {1, kNan, 2, 3})) EXPECT_TRUE(std::isnan(number));
}

// [KV-43]: of keys and values apart: one, one a KV head, one a channel, or one a channel of each head.
TEST(KvCacheScales, ScalesHaveTheShapeOfTheirKind) {
  AttentionConfig config{.hidden_size = 4, .num_attention_heads = 2, .num_key_value_heads = 2, .head_dim = 3};
  config.v_head_dim = 2;
  const std::vector<float> ones(12, 1.0F);
  const auto read = [&](const KvFormat& keys, const KvFormat& values) {
    auto cache = KvCache::paged({.slots = 1, .capacity = 1, .keys = keys, .values = values}, config);
    cache.append({.slot = 0, .count = 1}, ConstTensorView(ones.data(), {1, 2, 3}), {ones.data(), {1, 2, 2}});
    const auto [k, v] = cache.read(0, 0, 1);
    return std::pair{test::floats_of(k), test::floats_of(v)};
  };
  // A scale s of i8 gives 1 back as the nearest multiple of s.
  using enum KvScaling;
  const auto tensor = read(given(DType::i8, {0.75F}), given(DType::i8, {0.4F}));
  EXPECT_THAT(tensor.first, ::testing::Each(0.75F));
  EXPECT_THAT(tensor.second, ::testing::Each(0.8F));
  const auto head = read(given(DType::i8, {0.75F, 0.4F}, per_head), given(DType::i8, {0.4F, 0.75F}, per_head));
  EXPECT_THAT(head.first, ElementsAre(0.75F, 0.75F, 0.75F, 0.8F, 0.8F, 0.8F));
  EXPECT_THAT(head.second, ElementsAre(0.8F, 0.8F, 0.75F, 0.75F));
  const auto channel =
      read(given(DType::i8, {0.75F, 0.4F, 3}, per_channel), given(DType::i8, {0.75F, 0.4F, 3, 1}, per_channel));
  EXPECT_THAT(channel.first, ElementsAre(0.75F, 0.8F, 0, 0.75F, 0.8F, 0));
  EXPECT_THAT(channel.second, ElementsAre(0.75F, 0.8F, 0, 1));
}

TEST(KvCacheScales, RefusesScalesThatCanNotBe) {
  const auto refusal = [](const KvFormat& keys) {
    return error_of([&] { (void)KvCache::paged({.slots = 1, .capacity = 8, .keys = keys}, two_head_layer()); });
  };
  using enum KvScaling;
  EXPECT_THAT(refusal(given(DType::i8, {1, 2})), HasSubstr("keys have 2 scales, expected 1"));
  EXPECT_THAT(refusal(given(DType::i8, {1, 2, 3}, per_head)), HasSubstr("keys have 3 scales, expected 2"));
  EXPECT_THAT(refusal(given(DType::i8, {1}, per_head)), HasSubstr("keys have 1 scales, expected 2"));
  EXPECT_THAT(refusal(given(DType::i8, {1, 2}, per_channel)),
              HasSubstr("expected 20 or one a channel of each KV head"));
  EXPECT_THAT(refusal(given(DType::i8, {1}, per_token)), HasSubstr("per_token"));
  EXPECT_THAT(refusal(given(DType::bf16, {1})), HasSubstr("dtype is bf16, which has none"));
  for (const float scale : {0.0F, -1.0F, kNan, kInfinity})
    EXPECT_THAT(refusal(given(DType::i8, {scale})), HasSubstr("expected a positive number")) << scale;
}

// [KV-43]: the largest number of a sample becomes the type's largest, and nothing is cut off.
TEST(KvCacheScales, FittedScalesHoldTheirSample) {
  test::Numbers numbers(31);
  const Tensor sample = numbers.tensor({40, 2, 20});
  using enum KvScaling;
  for (const DType dtype : {DType::i8, DType::f8_e4m3, DType::f8_e5m2})
    for (const auto& [scaling, count] : {std::pair{per_tensor, 1}, {per_head, 2}, {per_channel, 40}}) {
      SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << count);
      const KvFormat format = KvFormat::fitted(dtype, scaling, sample);
      EXPECT_EQ(format.dtype, dtype);
      EXPECT_EQ(format.scaling, scaling);
      ASSERT_EQ(format.scales.size(), static_cast<size_t>(count));
      const float largest = dtype == DType::i8 ? 127.0F : dtype == DType::f8_e4m3 ? 448.0F : 57344.0F;
      std::vector<float> tops(format.scales.size());
      const auto all = sample.elements<float>();
      for (size_t i = 0; i < all.size(); ++i) {
        float& top = tops[count == 1 ? 0 : count == 2 ? i % 40 / 20 : i % 40];
        top = std::max(top, std::abs(all[i]));
      }
      for (size_t i = 0; i < tops.size(); ++i) EXPECT_FLOAT_EQ(format.scales[i] * largest, tops[i]);
      auto cache =
          KvCache::contiguous({.slots = 1, .capacity = 40, .dtype = DType::f32, .keys = format}, two_head_layer());
      cache.append({.slot = 0, .count = 40}, sample, numbers.tensor({40, 2, 12}));
      const Tensor back = cache.read(0, 0, 40).first;
      // Half a unit: of i8 everywhere the same, of fp8 relative to the number.
      const float half = dtype == DType::i8 ? 0.5F / 127 : dtype == DType::f8_e4m3 ? 1.0F / 16 : 1.0F / 8;
      for (size_t i = 0; i < all.size(); ++i)
        EXPECT_NEAR(back.elements<float>()[i], all[i],
                    half * 1.001F *
                        tops[count == 1   ? 0
                             : count == 2 ? i % 40 / 20
                                          : i % 40]);
    }
}

TEST(KvCacheScales, FittingTakesZerosAndTheSmallestNumbers) {
  for (const float size : {0.0F, 1e-45F, 1e-40F, 3e38F})
    for (const DType dtype : {DType::i8, DType::f8_e4m3, DType::f8_e5m2}) {
      Tensor sample(DType::f32, {3, 2, 20});
      for (float& x : sample.elements<float>()) x = size;
      const KvFormat format = KvFormat::fitted(dtype, KvScaling::per_head, sample);
      EXPECT_EQ(error_of([&] { (void)KvCache::paged({.slots = 1, .capacity = 8, .keys = format}, two_head_layer()); }),
                "")
          << size << ' ' << name_of(dtype);
    }
  Tensor sample(DType::f32, {1, 2, 20});
  EXPECT_ERROR(KvFormat::fitted(DType::f32, KvScaling::per_head, sample), "f32 is to be fitted");
  EXPECT_ERROR(KvFormat::fitted(DType::i8, KvScaling::per_token, sample), "per token");
  EXPECT_ERROR(KvFormat::fitted(DType::i8, KvScaling::per_head, Tensor(DType::f32, {2, 20})), "[tokens, kv_heads");
  sample.elements<float>()[7] = kInfinity;
  EXPECT_ERROR(KvFormat::fitted(DType::i8, KvScaling::per_head, sample), "finite");
}

OracleMatrix matrix(const Tensor& numbers) {
  const auto elements = numbers.elements<float>();
  OracleMatrix result(numbers.shape()[0], static_cast<int64_t>(elements.size()) / numbers.shape()[0]);
  std::copy(elements.begin(), elements.end(), result.numbers.begin());
  return result;
}

void expect_attention_of_what_is_read(const KvFormat& keys, const KvFormat& values, int64_t page_size) {
  constexpr int64_t kTokens = 300;
  constexpr int64_t kQueries = 4;
  auto cache = KvCache::paged({.slots = 1, .capacity = kTokens, .keys = keys, .values = values, .page_size = page_size},
                              two_head_layer());
  append(cache, 0, 0, kTokens);
  const auto [read_keys, read_values] = cache.read(0, 0, kTokens);
  const Tensor queries = test::Numbers(41).tensor({kQueries, 4, 20});
  const Tensor output(DType::f32, {kQueries, 4, 12});
  const Tensor lse(DType::f32, {kQueries, 4});
  const Span span{.slot = 0, .first_position = kTokens - kQueries, .count = kQueries};
  Workspace workspace(1);
  attend({.queries = queries,
          .spans = std::span(&span, 1),
          .cache = &cache,
          .softmax_scale = 0.5,
          .output = output,
          .lse = lse,
          .workspace = &workspace});
  const OracleAttendInput input{.heads = 4,
                                .kv_heads = 2,
                                .queries = matrix(queries),
                                .keys = matrix(read_keys),
                                .values = matrix(read_values),
                                .scale = 0.5,
                                .sees = [](int64_t query, int64_t key) { return key <= kTokens - kQueries + query; }};
  EXPECT_EQ(test::difference_from_oracle(input, output.elements<float>(), lse.elements<float>()), "");
}

// [KV-42], [KV-43]: attention is that of the numbers that `read` gives, whatever scales they have.
TEST(KvCacheScales, AttentionWithGivenScalesIsThatOfTheStoredNumbers) {
  test::Numbers numbers(42);
  const auto scales = [&](DType dtype, size_t count) {
    std::vector<float> all = numbers.floats(static_cast<int64_t>(count));
    const float largest = dtype == DType::i8 ? 127.0F : dtype == DType::f8_e4m3 ? 448.0F : 57344.0F;
    for (float& scale : all) scale = (1.5F + scale) / largest;
    return all;
  };
  using enum KvScaling;
  for (const DType dtype : {DType::i8, DType::f8_e4m3, DType::f8_e5m2})
    for (const int64_t page_size : {16, 256}) {
      SCOPED_TRACE(::testing::Message() << name_of(dtype) << ", pages of " << page_size);
      const auto of = [&](KvScaling scaling, size_t count) {
        return given(dtype, count == 0 ? std::vector<float>{} : scales(dtype, count), scaling);
      };
      expect_attention_of_what_is_read(of(per_tensor, 1), of(per_tensor, 1), page_size);
      expect_attention_of_what_is_read(of(per_head, 2), of(per_head, 2), page_size);
      expect_attention_of_what_is_read(of(per_channel, 20), of(per_channel, 12), page_size);
      expect_attention_of_what_is_read(of(per_channel, 40), of(per_channel, 24), page_size);
      expect_attention_of_what_is_read(of(per_tensor, 0), {.dtype = DType::bf16}, page_size);
      expect_attention_of_what_is_read({.dtype = DType::f16}, of(per_head, 2), page_size);
    }
}

}  // namespace
}  // namespace regard
