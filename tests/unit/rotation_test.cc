// Rotating heads by tables of cos and sin, alone and inside a layer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/rows.h"
#include "regard/attention.h"
#include "support/numbers.h"
#include "support/test_layer.h"

namespace regard {
namespace {

// Half an ulp of the numbers below 4.1, twice: two products and a sum.
constexpr double kTolerance = 5e-7;

std::vector<float> rotated(const RotaryConfig& config, std::vector<float> head, int64_t position) {
  const auto angles = RotaryEmbedding(config).angles(std::vector<int64_t>{position});
  kernels::rotate(config.style, angles.cos.values.view().as<float>(), angles.sin.values.view().as<float>(),
                  config.rotary_dim / 2, 1, static_cast<int64_t>(head.size()), head.data());
  return head;
}

void expect_near(const std::vector<float>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], kTolerance) << i;
}

// [POS-4], [POS-25]
TEST(Rotation, HalvesTurnTogetherInTheHalfStyle) {
  expect_near(rotated({.rotary_dim = 4}, {1, 2, 3, 4}, 1), {-1.98411065, 1.95990067, 2.46237790, 4.01979967});
}

// [POS-9], [POS-26]
TEST(Rotation, NeighboursTurnTogetherInTheInterleavedStyle) {
  expect_near(rotated({.style = RotaryStyle::interleaved, .rotary_dim = 4}, {1, 2, 3, 4}, 1),
              {-1.14263966, 1.92207560, 2.95985067, 4.02979950});
}

// [POS-27]
TEST(Rotation, PositionZeroChangesNothingAndNoPositionChangesTheLength) {
  for (const RotaryStyle style : {RotaryStyle::half, RotaryStyle::interleaved}) {
    const RotaryConfig config{.style = style, .rotary_dim = 4};
    EXPECT_EQ(rotated(config, {1, 2, 3, 4}, 0), (std::vector<float>{1, 2, 3, 4}));
    const auto head = rotated(config, {1, 2, 3, 4}, 777'777);
    EXPECT_NEAR(std::inner_product(head.begin(), head.end(), head.begin(), 0.0), 30.0, 30 * 4e-7);
  }
}

// [POS-27]: under yarn the length grows by the attention factor.
TEST(Rotation, YarnStretchesTheLengthByItsFactor) {
  const RotaryConfig config{.rotary_dim = 64,
                            .rope_theta = 150000,
                            .scaling = RopeScaling::yarn,
                            .factor = 32,
                            .original_max_position_embeddings = 4096};
  const auto head = rotated(config, std::vector<float>(64, 1.0F), 99);
  const double factor = 0.1 * std::log(32.0) + 1.0;
  EXPECT_NEAR(std::inner_product(head.begin(), head.end(), head.begin(), 0.0), 64 * factor * factor, 64 * 4e-7);
}

// [POS-28]
TEST(Rotation, DotProductsDependOnTheDistanceOnly) {
  test::Numbers numbers(5);
  const auto q = numbers.floats(16);
  const auto k = numbers.floats(16);
  for (const RotaryStyle style : {RotaryStyle::half, RotaryStyle::interleaved}) {
    const RotaryConfig config{.style = style, .rotary_dim = 16};
    const auto dot = [&](int64_t p, int64_t r) {
      const auto a = rotated(config, q, p);
      const auto b = rotated(config, k, r);
      return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
    };
    for (const int64_t shift : {1, 100, 10'000, 900'000}) EXPECT_NEAR(dot(7 + shift, 3 + shift), dot(7, 3), 2e-6);
    EXPECT_GT(std::abs(dot(8, 3) - dot(7, 3)), 1e-3);
  }
}

// Row r of the interleaved order is row pair[r] of the half order: i <-> 2i, i + D/2 <-> 2i + 1.
std::vector<int64_t> interleaving(int64_t heads, int64_t head_dim) {
  std::vector<int64_t> order;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t i = 0; i < head_dim; ++i) order.push_back(head * head_dim + i / 2 + i % 2 * head_dim / 2);
  return order;
}

// [POS-10]
TEST(Rotation, TheStylesAreThePermutationsOfEachOther) {
  const auto head = test::Numbers(6).floats(10);
  const auto order = interleaving(1, 10);
  const auto permuted = [&](const std::vector<float>& values) {
    std::vector<float> out;
    for (const int64_t i : order) out.push_back(values[static_cast<size_t>(i)]);
    return out;
  };
  const auto half = rotated({.rotary_dim = 10}, head, 12345);
  const auto interleaved = rotated({.style = RotaryStyle::interleaved, .rotary_dim = 10}, permuted(head), 12345);
  EXPECT_EQ(interleaved, permuted(half));
}

AttentionConfig rotating(const RotaryConfig& rotary, int64_t head_dim = 4) {
  AttentionConfig config{.num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = head_dim};
  config.rotary_emb = rotary;
  return config;
}

// [POS-10]: a checkpoint in one order runs as the other when its query and key rows are reordered at load.
TEST(Rotation, ReorderedRowsMakeALayerOfOneStyleTheOther) {
  AttentionConfig config = rotating({}, 8);
  config.hidden_size = 20;
  const auto half = test::random_layer(config, 9);
  auto interleaved = half;
  interleaved.config.rotary_emb->style = RotaryStyle::interleaved;
  interleaved.weights.qkv.q_row_order = interleaving(2, 8);
  interleaved.weights.qkv.k_row_order = interleaving(1, 8);
  const Tensor hidden = test::Numbers(1).tensor({30, 20});
  AttentionInput input;
  input.hidden_states = hidden;
  input.present_key_value = true;
  input.lse = true;
  const auto expected = half.load().forward(input);
  const auto actual = interleaved.load().forward(input);
  for (int64_t token = 0; token < 30; ++token)
    for (int64_t i = 0; i < 8; ++i)
      EXPECT_EQ(
          actual.present_key_value.key.view()[token][0].as<float>()[i],
          expected.present_key_value.key.view()[token][0].as<float>()[interleaving(1, 8)[static_cast<size_t>(i)]]);
  // Scores add the same products in another order; outputs stay below 20.
  for (size_t i = 0; i < 600; ++i)
    EXPECT_NEAR(actual.hidden_states.elements<float>()[i], expected.hidden_states.elements<float>()[i], 4e-5);
}

struct KeysOf {
  RotaryConfig rotary;
  std::vector<float> keys;
  std::vector<int64_t> rotary_position_ids;

  // The keys that a layer caches for tokens at positions 0, 1, ...
  [[nodiscard]] std::vector<float> cached() const {
    const auto layer = test::transparent_layer(rotating(rotary));
    const std::vector<float> queries(keys.size() * 2);
    const Tensor hidden = test::hidden_rows(layer.config, queries, keys, keys);
    AttentionInput input;
    input.hidden_states = hidden;
    input.rotary_position_ids = rotary_position_ids;
    input.present_key_value = true;
    return test::floats_of(layer.load().forward(input).present_key_value.key);
  }
};

// [POS-2]
TEST(Rotation, KeysAreCachedRotated) {
  expect_near(KeysOf{.keys = {1, 2, 3, 4, 1, 2, 3, 4}}.cached(),
              {1, 2, 3, 4, -1.98411065, 1.95990067, 2.46237790, 4.01979967});
}

// [POS-18]
TEST(Rotation, RotaryPositionIdsReplaceThePositions) {
  expect_near(KeysOf{.keys = {1, 2, 3, 4, 1, 2, 3, 4}, .rotary_position_ids = {1, 0}}.cached(),
              {-1.98411065, 1.95990067, 2.46237790, 4.01979967, 1, 2, 3, 4});
}

// Partial rotation: the rest of a head passes unchanged.
TEST(Rotation, OnlyTheFirstRotaryDimElementsTurn) {
  const double c = std::cos(1.0);
  const double s = std::sin(1.0);
  expect_near(KeysOf{.rotary = {.rotary_dim = 2}, .keys = {1, 2, 3, 4, 1, 2, 3, 4}}.cached(),
              {1, 2, 3, 4, c - 2 * s, 2 * c + s, 3, 4});
}

// [POS-11]
TEST(Rotation, WithoutARotaryEmbeddingNothingTurns) {
  AttentionConfig config = rotating({});
  config.rotary_emb.reset();
  const auto layer = test::transparent_layer(config);
  const std::vector<float> keys = {1, 2, 3, 4, 5, 6, 7, 8};
  const Tensor hidden = test::hidden_rows(layer.config, std::vector<float>(16), keys, keys);
  AttentionInput input;
  input.hidden_states = hidden;
  input.present_key_value = true;
  input.angles = true;
  const auto output = layer.load().forward(input);
  EXPECT_EQ(test::floats_of(output.present_key_value.key), keys);
  EXPECT_TRUE(output.cos_cache.empty());  // [OUT-8]
  EXPECT_TRUE(output.sin_cache.empty());
}

class HandedOnTables : public ::testing::Test {
 protected:
  static Attention layer(double theta) {
    AttentionConfig config = rotating({.rope_theta = theta});
    config.hidden_size = 12;
    return test::random_layer(config, 4).load();
  }
  AttentionOutput run(const Attention& attention, const AttentionOutput* earlier, bool with_sin = true) {
    AttentionInput input;
    input.hidden_states = hidden_;
    input.present_key_value = true;
    input.angles = true;
    if (earlier != nullptr) {
      input.cos_cache = &earlier->cos_cache;
      if (with_sin) input.sin_cache = &earlier->sin_cache;
    }
    return attention.forward(input);
  }

  Tensor hidden_ = test::Numbers(2).tensor({5, 12});
};

// [POS-15]: the layer computes with the very numbers it is handed, and hands them on.
TEST_F(HandedOnTables, AreUsedWhereTheyFit) {
  const Attention attention = layer(10000);
  const auto first = run(attention, nullptr);
  std::ranges::fill(first.cos_cache.values.elements<float>(), 1.0F);
  std::ranges::fill(first.sin_cache.values.elements<float>(), 0.0F);
  const auto second = run(attention, &first);
  EXPECT_EQ(second.cos_cache.values.view().data(), first.cos_cache.values.view().data());
  EXPECT_NE(test::floats_of(second.present_key_value.key), test::floats_of(first.present_key_value.key));
}

// [GAP-13]: the reference hands Gemma 3's local table to its global layers.
TEST_F(HandedOnTables, AreRecomputedUnderAnotherBase) {
  const Attention other = layer(1e6);
  const auto first = run(layer(10000), nullptr);
  const auto alone = run(other, nullptr);
  const auto after = run(other, &first);
  EXPECT_EQ(test::bytes_of(after.hidden_states), test::bytes_of(alone.hidden_states));
  EXPECT_EQ(test::bytes_of(after.cos_cache.values), test::bytes_of(alone.cos_cache.values));
}

// [POS-15]
TEST_F(HandedOnTables, AreRecomputedWhenOneIsMissing) {
  const Attention attention = layer(10000);
  const auto first = run(attention, nullptr);
  const auto expected = test::bytes_of(first.hidden_states);
  std::ranges::fill(first.cos_cache.values.elements<float>(), 1.0F);
  EXPECT_EQ(test::bytes_of(run(attention, &first, false).hidden_states), expected);
}

// Cos and sin of the keys that a cache of 300 tokens gets, in a layer trained on 100: no default length chooses a list.
TEST(Rotation, ALongropeLayerTurnsByTheListOfItsConfig) {
  AttentionConfig config{.num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 2};
  for (const auto& [factors, divisor] :
       {std::pair{LongropeFactors::short_factor, 2.0}, {LongropeFactors::long_factor, 4.0}}) {
    config.rotary_emb = RotaryConfig{.scaling = RopeScaling::longrope,
                                     .original_max_position_embeddings = 100,
                                     .attention_factor = 1.0,
                                     .short_factor = {2},
                                     .long_factor = {4},
                                     .longrope_factors = factors};
    const auto layer = test::transparent_layer(config);
    const Tensor hidden = test::hidden_rows(layer.config, {1, 0, 1, 0}, {1, 0, 1, 0}, {0, 0, 0, 0});
    const Attention attention = layer.load();
    KvCache cache = attention.make_cache(KvStorage::contiguous, {.capacity = 300});
    AttentionInput input;
    input.hidden_states = hidden;
    input.cache = &cache;
    input.present_key_value = true;
    const auto keys = test::floats_of(attention.forward(input).present_key_value.key);
    ASSERT_EQ(keys.size(), 4U);
    EXPECT_NEAR(keys[2], std::cos(1 / divisor), 1e-7);
    EXPECT_NEAR(keys[3], std::sin(1 / divisor), 1e-7);
  }
}

// Llama 4's layers without rotation: queries grow with their position, keys do not.
TEST(Rotation, QueryPositionScaleGrowsQueriesByTheLogOfTheirPosition) {
  AttentionConfig config{.num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1, .sliding_window = 1};
  config.query_position_scale = QueryPositionScale{.floor_scale = 2, .attn_scale = 0.5};
  const auto layer = test::transparent_layer(config);
  const Tensor hidden = test::hidden_rows(layer.config, {3, 3, 3, 3}, {2, 2, 2, 2}, {1, 1, 1, 1});
  AttentionInput input;
  input.hidden_states = hidden;
  input.present_key_value = true;
  input.lse = true;
  const auto output = layer.load().forward(input);
  // Every row sees its own key only, so that its lse is its score.
  for (size_t p = 0; p < 4; ++p)
    EXPECT_NEAR(output.lse.elements<float>()[p],
                6 * (std::log(1 + std::floor((static_cast<double>(p) + 1) / 2)) * 0.5 + 1), 2e-6);
  EXPECT_EQ(test::floats_of(output.present_key_value.key), (std::vector<float>{2, 2, 2, 2}));
}

// Ministral 3: the step is at position L itself, where Llama 4 takes it one before.
TEST(Rotation, AQueryPositionScaleWithOffset0StepsAtMultiplesOfItsLength) {
  AttentionConfig config{.num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1, .sliding_window = 1};
  config.query_position_scale = QueryPositionScale{.floor_scale = 3, .attn_scale = 0.5, .offset = 0};
  const auto layer = test::transparent_layer(config);
  const Tensor hidden =
      test::hidden_rows(layer.config, {3, 3, 3, 3, 3, 3, 3}, {2, 2, 2, 2, 2, 2, 2}, {1, 1, 1, 1, 1, 1, 1});
  AttentionInput input;
  input.hidden_states = hidden;
  input.lse = true;
  const auto output = layer.load().forward(input);
  // 1 + 0.5 ln(1 + floor(p / 3)) for p = 0 .. 6, as get_llama_4_attn_scale of transformers' ministral3 has it
  const std::vector<double> growth = {
      1, 1, 1, 1.3465735902799727, 1.3465735902799727, 1.3465735902799727, 1.5493061443340548};
  for (size_t p = 0; p < growth.size(); ++p) EXPECT_NEAR(output.lse.elements<float>()[p], 6 * growth[p], 2e-6);
}

}  // namespace
}  // namespace regard
