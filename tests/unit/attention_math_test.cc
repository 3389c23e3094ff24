// Softmax attention through a whole layer: worked cases, sinks, soft cap, empty rows, what NaN may and may not do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attend.h"
#include "kernels/rows.h"
#include "regard/attention.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/test_layer.h"

namespace regard {
namespace {

using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kLn3 = std::log(3.0F);
const float kLn4 = std::log(4.0F);

AttentionConfig one_head() { return {.num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1}; }

// The last of some tokens of a layer with one head of one element.
struct LastToken {
  AttentionConfig config = one_head();
  std::vector<float> sinks;
  std::vector<float> keys = {0, kLn3};
  std::vector<float> values = {0, 4};
  float query = 1;

  struct Result {
    float out;
    float lse;
  };
  // `cached` tokens come in a call before.
  [[nodiscard]] Result run(int64_t cached = 0) const {
    auto layer = test::transparent_layer(config);
    layer.weights.sinks = sinks;
    layer.config.learned_sinks_size = static_cast<int64_t>(sinks.size());
    const Attention attention = layer.load();
    const auto count = static_cast<int64_t>(keys.size());
    KvCache cache = KvCache::contiguous({.slots = 1, .capacity = count, .dtype = DType::f32}, attention.config());
    const Tensor hidden = test::hidden_rows(layer.config, std::vector<float>(keys.size(), query), keys, values);
    AttentionInput input;
    input.cache = &cache;
    input.lse = true;
    AttentionOutput output;
    for (const Span& span : {Span{.slot = 0, .first_position = 0, .count = cached},
                             Span{.slot = 0, .first_position = cached, .count = count - cached}}) {
      if (span.count == 0) continue;
      const Tensor part = convert(hidden.view().slice(0, span.first_position, span.count), DType::f32);
      input.hidden_states = part;
      input.spans = std::span(&span, 1);
      output = attention.forward(input);
    }
    return {.out = test::attended_heads(layer.config, output.hidden_states).back(),
            .lse = output.lse.elements<float>().back()};
  }
};

// [MATH-20], [MATH-1]: weights 1/4 and 3/4.
TEST(AttentionMath, TwoKeysWeighTheirExponentials) {
  const auto result = LastToken{}.run();
  EXPECT_NEAR(result.out, 3.0, 1e-6);
  EXPECT_NEAR(result.lse, std::log(4.0), 1e-6);
}

// [MATH-20], [MATH-6]: a sink of ln 4 halves the weights.
TEST(AttentionMath, ASinkTakesItsShareOfTheWeights) {
  const auto result = LastToken{.sinks = {kLn4}}.run();
  EXPECT_NEAR(result.out, 1.5, 1e-6);
  EXPECT_NEAR(result.lse, std::log(8.0), 1e-6);
}

// [MATH-22], [GAP-22]: the same numbers when the first key was cached before, and the sink counts once.
TEST(AttentionMath, DecodeEqualsPrefill) {
  EXPECT_EQ(LastToken{}.run(1).out, LastToken{}.run().out);
  EXPECT_EQ(LastToken{.sinks = {kLn4}}.run(1).out, LastToken{.sinks = {kLn4}}.run().out);
  EXPECT_EQ(LastToken{.sinks = {kLn4}}.run(1).lse, LastToken{.sinks = {kLn4}}.run().lse);
}

// [CFG-14]: softmax_scale multiplies. A query of 2 at scale 0.5 is the worked case again; the sink is not scaled.
TEST(AttentionMath, SoftmaxScaleMultipliesTheScoresAndNotTheSink) {
  LastToken token{.sinks = {kLn4}, .query = 2};
  token.config.softmax_scale = 0.5;
  EXPECT_NEAR(token.run().out, 1.5, 1e-6);
}

// [GAP-6]: sinks of ln 1 and ln 3 weigh as one of ln 4.
TEST(AttentionMath, SeveralSinksOfAHeadAddUp) {
  EXPECT_NEAR((LastToken{.sinks = {0, kLn3}}.run().out), 1.5, 1e-6);
  EXPECT_NEAR((LastToken{.sinks = {-kInf, kLn4}}.run().out), 1.5, 1e-6);
}

TEST(AttentionMath, ASinkOfMinusInfinityIsNone) {
  EXPECT_EQ(LastToken{.sinks = {-kInf}}.run().out, LastToken{}.run().out);
  EXPECT_EQ((LastToken{.sinks = {-kInf, -kInf}}.run().out), LastToken{}.run().out);
}

TEST(AttentionMath, AHugeSinkLeavesNothingAndATinyOneTakesNothing) {
  EXPECT_EQ(LastToken{.sinks = {1e30F}}.run().out, 0.0F);
  EXPECT_EQ(LastToken{.sinks = {-1e30F}}.run().out, LastToken{}.run().out);
}

// Scores 0 and cap * tanh(ln 3 / cap).
TEST(AttentionMath, TheSoftCapBendsTheScores) {
  for (const double cap : {0.5, 1.0, 50.0}) {
    LastToken token;
    token.config.logit_soft_cap = cap;
    const double weight = std::exp(cap * std::tanh(std::log(3.0) / cap));
    EXPECT_NEAR(token.run().out, 4 * weight / (1 + weight), 2e-6) << cap;
    EXPECT_NEAR(token.run().lse, std::log(1 + weight), 2e-6) << cap;
  }
}

// Order on scores: scale, then cap.
TEST(AttentionMath, TheScaleComesBeforeTheSoftCap) {
  LastToken token{.query = 2};
  token.config.softmax_scale = 0.5;
  token.config.logit_soft_cap = 1.0;
  const double weight = std::exp(std::tanh(std::log(3.0)));
  EXPECT_NEAR(token.run().out, 4 * weight / (1 + weight), 2e-6);
}

TEST(AttentionMath, ScoresOfAnySizeNeitherOverflowNorVanish) {
  for (const float size : {1e4F, 1e20F, 1e38F}) {
    EXPECT_EQ((LastToken{.keys = {-size, size}}.run().out), 4.0F);
    EXPECT_EQ((LastToken{.keys = {size, -size}}.run().out), 0.0F);
    EXPECT_NEAR((LastToken{.keys = {-size, -size}}.run().out), 2.0, 1e-6);
    EXPECT_EQ((LastToken{.keys = {-size, size}}.run().lse), size);
  }
}

// [MATH-2]: query head h reads KV head h div G.
TEST(AttentionMath, GroupsOfQueryHeadsShareAKvHead) {
  AttentionConfig config{.num_attention_heads = 6, .num_key_value_heads = 2, .head_dim = 1};
  const auto layer = test::transparent_layer(config);
  const Tensor hidden = test::hidden_rows(layer.config, std::vector<float>(6), {0, 0}, {10, 20});
  AttentionInput input;
  input.hidden_states = hidden;
  EXPECT_EQ(test::attended_heads(layer.config, layer.load().forward(input).hidden_states),
            (std::vector<float>{10, 10, 10, 20, 20, 20}));
}

// Sinks belong to query heads, not to KV heads [PROJ-21].
TEST(AttentionMath, EveryQueryHeadHasItsOwnSink) {
  AttentionConfig config{.num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 1, .learned_sinks_size = 1};
  auto layer = test::transparent_layer(config);
  layer.weights.sinks = {0, kLn3};
  const Tensor hidden = test::hidden_rows(layer.config, {0, 0}, {0}, {8});
  AttentionInput input;
  input.hidden_states = hidden;
  const auto heads = test::attended_heads(layer.config, layer.load().forward(input).hidden_states);
  EXPECT_NEAR(heads[0], 4, 1e-6);
  EXPECT_NEAR(heads[1], 2, 1e-6);
}

TEST(AttentionMath, SinksThatDoNotFitAreRefused) {
  const auto refusal = [](int64_t size, std::vector<float> sinks) {
    AttentionConfig config = one_head();
    config.learned_sinks_size = size;
    auto layer = test::transparent_layer(config);
    layer.weights.sinks = std::move(sinks);
    return test::error_of([&] { (void)layer.load(); });
  };
  EXPECT_EQ(refusal(2, {0, 0}), "");
  EXPECT_THAT(refusal(1, {}), HasSubstr("sinks has 0 numbers, expected 1"));
  EXPECT_THAT(refusal(0, {1}), HasSubstr("sinks has 1 numbers, expected 0"));
  EXPECT_THAT(refusal(1, {NAN}), HasSubstr("sinks holds NaN"));
}

// A call of the kernel itself, where a row may see nothing: 2 query heads, one KV head, keys of 1.
struct EmptyRow {
  std::vector<float> out = std::vector<float>(2, NAN);
  std::vector<float> lse = std::vector<float>(2, NAN);

  explicit EmptyRow(const float* sinks) {
    const std::vector<float> queries = {1, 1};
    const Interval visible{5, 4};
    const kernels::AttendSpan span{.kv = {.page_tokens = 16}, .count = 1};
    kernels::AttendScratch scratch;
    kernels::attend({.shape = {.heads = 2, .kv_heads = 1, .head_dim = 1, .v_head_dim = 1, .sinks = sinks},
                     .spans = std::span(&span, 1),
                     .queries = reinterpret_cast<const std::byte*>(queries.data()),
                     .visible = &visible,
                     .out = reinterpret_cast<std::byte*>(out.data()),
                     .lse = lse.data()},
                    scratch, Threads(2));
  }
};

// [MATH-7], [MATH-21], [GAP-29]: zeros where the reference averages.
TEST(AttentionMath, ARowThatSeesNothingGivesZeros) {
  const EmptyRow row(nullptr);
  EXPECT_EQ(row.out, (std::vector<float>{0, 0}));
  EXPECT_EQ(row.lse, (std::vector<float>{-kInf, -kInf}));
}

// [MATH-21]
TEST(AttentionMath, ARowThatSeesOnlyItsSinkGivesZerosAndTheSink) {
  const std::vector<float> sinks = {2.5F, -kInf};
  const EmptyRow row(sinks.data());
  EXPECT_EQ(row.out, (std::vector<float>{0, 0}));
  EXPECT_FLOAT_EQ(row.lse[0], 2.5F);
  EXPECT_EQ(row.lse[1], -kInf);
}

// A token at position 299 with a window of 40 behind 299 cached ones, of which some may be poisoned.
class Poison : public ::testing::Test {
 protected:
  static constexpr int64_t kCached = 299;
  static constexpr int64_t kWindow = 40;

  Poison() {
    AttentionConfig config{.hidden_size = 16, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 20};
    config.sliding_window = kWindow;
    config.learned_sinks_size = 1;
    layer_ = test::random_layer(config, 71);
    keys_ = numbers_.tensor({kCached, 2, 20});
    values_ = numbers_.tensor({kCached, 2, 20});
  }

  [[nodiscard]] std::vector<float> decode(DType dtype) {
    const Attention attention = layer_.load(2);
    KvCache cache = KvCache::contiguous({.slots = 1, .capacity = 400, .dtype = dtype}, attention.config());
    // What lies behind the length is left over from an earlier tenant.
    const Tensor leftover(DType::f32, {400, 2, 20});
    std::ranges::fill(leftover.elements<float>(), poison_);
    cache.append({.slot = 0, .count = 400}, leftover, leftover);
    cache.append({.slot = 0, .count = kCached}, keys_, values_);
    const Span span{.slot = 0, .first_position = kCached, .count = 1};
    AttentionInput input;
    input.hidden_states = hidden_;
    input.spans = std::span(&span, 1);
    input.cache = &cache;
    return test::floats_of(attention.forward(input).hidden_states);
  }

  void poison(const Tensor& tensor, int64_t first, int64_t last) const {
    for (int64_t position = first; position <= last; ++position)
      std::ranges::fill(tensor.view()[position].elements<float>(), poison_);
  }

  test::Numbers numbers_{72};
  test::TestLayer layer_;
  Tensor keys_, values_;
  Tensor hidden_ = numbers_.tensor({1, 16});
  float poison_ = 0;
};

TEST_F(Poison, OutsideTheIntervalChangesNoBit) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    poison_ = 0;
    const auto clean = decode(dtype);
    const Tensor keys = convert(keys_, DType::f32);
    const Tensor values = convert(values_, DType::f32);
    for (const float poison_value : {static_cast<float>(NAN), kInf, -kInf}) {
      poison_ = poison_value;
      poison(keys_, 0, kCached - kWindow);  // the first visible position is one later
      poison(values_, 0, kCached - kWindow);
      EXPECT_EQ(decode(dtype), clean) << name_of(dtype) << ' ' << poison_value;
    }
    keys_ = keys;
    values_ = values;
  }
}

TEST_F(Poison, ANaNInsideTheIntervalReachesTheOutput) {
  poison_ = NAN;
  for (const int64_t position : {kCached - kWindow + 1, int64_t{280}, kCached - 1})
    for (Tensor* tensor : {&keys_, &values_}) {
      const Tensor clean = convert(*tensor, DType::f32);
      poison(*tensor, position, position);
      for (const float value : decode(DType::f32)) EXPECT_TRUE(std::isnan(value)) << position;
      *tensor = clean;
    }
}

// One bad sequence in a batch leaves its neighbours alone.
TEST_F(Poison, ANaNInOneSequenceDoesNotReachTheOthers) {
  const Attention attention = layer_.load(2);
  const Tensor hidden = numbers_.tensor({60, 16});
  const std::vector<Span> spans = {{.slot = 0, .count = 20}, {.slot = 1, .count = 20}, {.slot = 2, .count = 20}};
  AttentionInput input;
  input.hidden_states = hidden;
  input.spans = spans;
  const Tensor clean = attention.forward(input).hidden_states;
  hidden.elements<float>()[20 * 16] = NAN;
  const Tensor dirty = attention.forward(input).hidden_states;
  for (const int64_t first : {0, 40})
    EXPECT_EQ(test::bytes_of(dirty.view().slice(0, first, 20)), test::bytes_of(clean.view().slice(0, first, 20)));
  EXPECT_TRUE(std::isnan(dirty.view()[39].as<float>()[0]));
}

}  // namespace
}  // namespace regard
