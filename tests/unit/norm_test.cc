// Norms against plain double code, alone and where a layer applies them.
#include "layers/norm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/rows.h"
#include "regard/attention.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/test_layer.h"

namespace regard {
namespace {

using ::testing::HasSubstr;
using Doubles = std::vector<double>;

Doubles widened(const std::vector<float>& values) { return {values.begin(), values.end()}; }

// [POS-12], [POS-23]; an empty weight is no gain, an empty bias none.
Doubles plain_norm(NormKind kind, double eps, const Doubles& weight, const Doubles& bias, Doubles x) {
  const auto count = static_cast<double>(x.size());
  if (kind == NormKind::layer_norm) {
    double mean = 0;
    for (const double value : x) mean += value / count;
    for (double& value : x) value -= mean;
  }
  double square = 0;
  for (const double value : x) square += value * value / count;
  for (size_t i = 0; i < x.size(); ++i) {
    double gain = weight.empty() ? 1.0 : weight[i];
    if (kind == NormKind::rms_plus_one && !weight.empty()) gain += 1.0;
    x[i] = x[i] / std::sqrt(square + eps) * gain + (bias.empty() ? 0.0 : bias[i]);
  }
  return x;
}

// A sum of n numbers runs in 16 lanes: at most n/16 + 4 roundings, plus those of the mean, the factor and the gains.
// Numbers and gains are below 2, normed numbers below 8.
double tolerance(int64_t count) { return static_cast<double>(count / 16 + 12) * 0x1p-24 * 16; }

void expect_near(const std::vector<float>& actual, const Doubles& expected, double error) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], error) << i;
}

TEST(Norm, EveryKindAndWidthEqualsThePlainFormula) {
  test::Numbers numbers(51);
  for (const NormKind kind : {NormKind::rms, NormKind::rms_plus_one, NormKind::layer_norm})
    for (const int64_t count : {2, 5, 15, 16, 17, 64, 100, 128, 300, 4096})
      for (const bool with_weight : {false, true}) {
        SCOPED_TRACE(::testing::Message() << static_cast<int>(kind) << ' ' << count << ' ' << with_weight);
        auto row = numbers.floats(count);
        const auto weight = with_weight ? numbers.floats(count) : std::vector<float>();
        const auto bias = kind == NormKind::layer_norm && with_weight ? numbers.floats(count) : std::vector<float>();
        const auto expected = plain_norm(kind, 1e-5, widened(weight), widened(bias), widened(row));
        kernels::normalize(kind, 1e-5, weight.empty() ? nullptr : weight.data(), bias.empty() ? nullptr : bias.data(),
                           count, row.data());
        expect_near(row, expected, tolerance(count));
      }
}

TEST(Norm, EpsKeepsRowsOfZerosAtZero) {
  for (const NormKind kind : {NormKind::rms, NormKind::rms_plus_one, NormKind::layer_norm}) {
    std::vector<float> row(20);
    kernels::normalize(kind, 1e-6, nullptr, nullptr, 20, row.data());
    EXPECT_EQ(row, std::vector<float>(20));
  }
}

// mean(x^2) = 12.5 and eps 3.5 make the root 4.
TEST(Norm, EpsIsAddedToTheMeanSquare) {
  const std::vector<float> x = {3, -4};
  const std::vector<float> weight = {2, 10};
  std::vector<float> out(2);
  kernels::rms_norm(x.data(), weight.data(), 3.5, 2, out.data());
  EXPECT_EQ(out, (std::vector<float>{1.5F, -10.0F}));
  kernels::rms_norm(x.data(), nullptr, 3.5, 2, out.data());
  EXPECT_EQ(out, (std::vector<float>{0.75F, -1.0F}));
}

TEST(Norm, MayWorkInPlace) {
  std::vector<float> x = {3, -4};
  kernels::rms_norm(x.data(), nullptr, 3.5, 2, x.data());
  EXPECT_EQ(x, (std::vector<float>{0.75F, -1.0F}));
}

// The norms of the residual stream: chosen rows of a matrix.
TEST(Norm, RowsOfAMatrixAreNormedWithGainAndBias) {
  constexpr int64_t kColumns = 37;
  test::Numbers numbers(54);
  const Tensor x = numbers.tensor({5, kColumns});
  const auto weight = numbers.floats(kColumns);
  const std::vector<int64_t> rows = {3, 0, 3};
  for (const NormKind kind : {NormKind::rms, NormKind::rms_plus_one, NormKind::layer_norm})
    for (const bool has_bias : {false, true}) {
      if (has_bias && kind != NormKind::layer_norm) continue;
      SCOPED_TRACE(::testing::Message() << static_cast<int>(kind) << has_bias);
      const auto bias = has_bias ? numbers.floats(kColumns) : std::vector<float>();
      const NormSpec spec{.kind = kind, .eps = 1e-5, .has_bias = has_bias};
      const Tensor out(DType::f32, {std::ssize(rows), kColumns});
      Norm(spec, weight, bias).apply(x, out.view(), Threads(1), rows);
      for (size_t i = 0; i < rows.size(); ++i) {
        const auto row = test::floats_of(x.view()[rows[i]]);
        expect_near(test::floats_of(out.view()[static_cast<int64_t>(i)]),
                    plain_norm(kind, 1e-5, widened(weight), widened(bias), widened(row)), tolerance(kColumns));
      }
    }
  EXPECT_THAT(test::error_of([&] { Norm({.kind = NormKind::layer_norm, .has_bias = true}, weight, {}); }),
              HasSubstr("a bias is missing"));
  EXPECT_THAT(test::error_of([&] { Norm({.kind = NormKind::layer_norm}, weight, weight); }),
              HasSubstr("a bias is given"));
}

// What a layer with two query heads and two KV heads of 4 does to one token at position 1.
constexpr int64_t kHeads = 2;
constexpr int64_t kWidth = 4;

struct Normed {
  std::vector<float> keys, values;
  float score;  // q . k of head 0, unscaled
};

AttentionConfig two_heads() {
  return {.num_attention_heads = kHeads, .num_key_value_heads = kHeads, .head_dim = kWidth, .softmax_scale = 1.0};
}

const std::vector<float> kQuery = {1, -2, 3, 0.5F, 4, 4, -1, 2};
const std::vector<float> kKey = {2, 1, -1, 3, -5, 0.25F, 1, 1};
const std::vector<float> kValue = {1, 2, 3, 4, 5, 6, 7, 8};

Normed run(const AttentionConfig& config, const AttentionWeights& weights) {
  auto layer = test::transparent_layer(config);
  layer.config.sliding_window = 1;  // a token sees itself only: its lse is its score
  layer.weights = weights;
  const Tensor hidden = test::hidden_rows(layer.config, kQuery, kKey, kValue);
  const std::vector<int64_t> position = {1};
  AttentionInput input;
  input.hidden_states = hidden;
  input.rotary_position_ids = position;
  input.present_key_value = true;
  input.lse = true;
  const auto output = layer.load().forward(input);
  return {.keys = test::floats_of(output.present_key_value.key),
          .values = test::floats_of(output.present_key_value.value),
          .score = output.lse.elements<float>()[0]};
}

// `norm` on heads of kWidth elements, or on all of them together.
Doubles on_heads(const Doubles& all, NormWidth width, auto&& norm) {
  if (width == NormWidth::all) return norm(all);
  Doubles out;
  for (int64_t head = 0; head < kHeads; ++head)
    for (const double value : norm(Doubles(all.begin() + head * kWidth, all.begin() + (head + 1) * kWidth)))
      out.push_back(value);
  return out;
}

double dot_of_head_0(const Doubles& q, const Doubles& k) {
  double sum = 0;
  for (size_t i = 0; i < static_cast<size_t>(kWidth); ++i) sum += q[i] * k[i];
  return sum;
}

// [POS-1], [POS-14], [GAP-11]: gains and biases of each kind, per head and over all heads.
TEST(LayerNorms, QueriesAndKeysAreNormedAsTheConfigSays) {
  test::Numbers numbers(52);
  for (const NormKind kind : {NormKind::rms, NormKind::rms_plus_one, NormKind::layer_norm})
    for (const NormWidth width : {NormWidth::head, NormWidth::all})
      for (const bool has_weight : {false, true}) {
        SCOPED_TRACE(::testing::Message() << static_cast<int>(kind) << static_cast<int>(width) << has_weight);
        const int64_t count = width == NormWidth::all ? kHeads * kWidth : kWidth;
        AttentionConfig config = two_heads();
        config.q_layernorm = config.k_layernorm =
            QKNorm{.kind = kind, .width = width, .eps = 1e-3, .has_weight = has_weight};
        AttentionWeights weights;
        if (has_weight) {
          weights.q_norm = numbers.floats(count);
          weights.k_norm = numbers.floats(count);
        }
        if (has_weight && kind == NormKind::layer_norm) {
          weights.q_norm_bias = numbers.floats(count);
          weights.k_norm_bias = numbers.floats(count);
        }
        const auto normed = [&](const std::vector<float>& x, const std::vector<float>& weight,
                                const std::vector<float>& bias) {
          return on_heads(widened(x), width, [&](const Doubles& head) {
            return plain_norm(kind, 1e-3, widened(weight), widened(bias), head);
          });
        };
        const Doubles q = normed(kQuery, weights.q_norm, weights.q_norm_bias);
        const Doubles k = normed(kKey, weights.k_norm, weights.k_norm_bias);
        const Normed actual = run(config, weights);
        expect_near(actual.keys, k, tolerance(count));
        EXPECT_NEAR(actual.score, dot_of_head_0(q, k), 2e-5);
        EXPECT_EQ(actual.values, kValue);  // [POS-1]: values are never normed by it
      }
}

// Command R+ and StableLM: a statistic of each head, and a gain and bias of each head.
TEST(LayerNorms, EachHeadMayHaveWeightsOfItsOwn) {
  test::Numbers numbers(53);
  for (const NormKind kind : {NormKind::rms, NormKind::rms_plus_one, NormKind::layer_norm}) {
    AttentionConfig config = two_heads();
    config.q_layernorm = config.k_layernorm = QKNorm{.kind = kind, .eps = 1e-3, .weight_per_head = true};
    AttentionWeights weights;
    weights.q_norm = numbers.floats(kHeads * kWidth);
    weights.k_norm = numbers.floats(kHeads * kWidth);
    if (kind == NormKind::layer_norm) weights.k_norm_bias = numbers.floats(kHeads * kWidth);
    const auto normed = [&](const std::vector<float>& x, const std::vector<float>& weight,
                            const std::vector<float>& bias) {
      Doubles out;
      for (int64_t head = 0; head < kHeads; ++head) {
        const auto own = [&](const std::vector<float>& all) {
          return all.empty() ? Doubles() : widened({all.begin() + head * kWidth, all.begin() + (head + 1) * kWidth});
        };
        for (const double value : plain_norm(kind, 1e-3, own(weight), own(bias), own(x))) out.push_back(value);
      }
      return out;
    };
    const Doubles k = normed(kKey, weights.k_norm, weights.k_norm_bias);
    const Normed actual = run(config, weights);
    expect_near(actual.keys, k, tolerance(kWidth));
    EXPECT_NEAR(actual.score, dot_of_head_0(normed(kQuery, weights.q_norm, {}), k), 2e-5);
  }
}

// What transformers 5.24 makes of kKey with these gains: StableLmLayerNormPerHead in f64; its CohereLayerNorm differs
// by the roundings of f32.
TEST(LayerNorms, WeightsOfEachHeadAreThoseOfCohereAndStableLm) {
  AttentionConfig config = two_heads();
  config.q_layernorm = config.k_layernorm = QKNorm{.kind = NormKind::layer_norm, .eps = 1e-5, .weight_per_head = true};
  AttentionWeights weights;
  weights.q_norm = weights.k_norm = {1.5F, -0.5F, 2, 1, 0.25F, 3, -1, 0.5F};
  expect_near(run(config, weights).keys,
              {0.7606370906585876, 0.08451523229539862, -3.04254836263435, 1.1832132521355807, -0.429774836860251,
               1.1211517483310895, -0.6726910489986537, 0.33634552449932686},
              tolerance(kWidth));
}

// [CFG-8], [POS-12], [CFG-7]: no gain, per head, eps 1e-6 unless rms_norm_eps says otherwise.
TEST(LayerNorms, UseQkNormTakesItsEpsFromRmsNormEps) {
  AttentionConfig config = two_heads();
  config.use_qk_norm = true;
  const auto expected = [](double eps, const std::vector<float>& x) {
    return on_heads(widened(x), NormWidth::head,
                    [&](const Doubles& head) { return plain_norm(NormKind::rms, eps, {}, {}, head); });
  };
  expect_near(run(config, {}).keys, expected(1e-6, kKey), tolerance(kWidth));
  config.rms_norm_eps = 0.5;
  const Normed actual = run(config, {});
  expect_near(actual.keys, expected(0.5, kKey), tolerance(kWidth));
  EXPECT_NEAR(actual.score, dot_of_head_0(expected(0.5, kQuery), expected(0.5, kKey)), 2e-6);
}

Doubles turned(Doubles heads) {
  for (size_t first = 0; first < heads.size(); first += kWidth)
    for (size_t i = 0; i < 2; ++i) {
      const double angle = i == 0 ? 1.0 : 0.01;
      const double x = heads[first + i];
      const double y = heads[first + i + 2];
      heads[first + i] = x * std::cos(angle) - y * std::sin(angle);
      heads[first + i + 2] = y * std::cos(angle) + x * std::sin(angle);
    }
  return heads;
}

// [CFG-9], [GAP-12]: with a gain, norm and rotation do not commute.
TEST(LayerNorms, PlacementDecidesWhetherTheNormOrTheRotationComesFirst) {
  AttentionWeights weights;
  weights.q_norm = {1, 2, 3, 4};
  weights.k_norm = {4, -3, 2, 1};
  AttentionConfig config = two_heads();
  config.rotary_emb = RotaryConfig{};
  config.q_layernorm = config.k_layernorm = QKNorm{};
  const auto norm = [&](const Doubles& x) {
    return on_heads(x, NormWidth::head, [&](const Doubles& head) {
      return plain_norm(NormKind::rms, 1e-6, widened(weights.k_norm), {}, head);
    });
  };
  config.qk_norm_placement = QKNormPlacement::PRE_ROPE;
  expect_near(run(config, weights).keys, turned(norm(widened(kKey))), 4 * tolerance(kWidth));
  config.qk_norm_placement = QKNormPlacement::POST_ROPE;
  expect_near(run(config, weights).keys, norm(turned(widened(kKey))), 4 * tolerance(kWidth));
}

// Gemma 4 norms values without gain; MiMo V2 scales them.
TEST(LayerNorms, ValuesMayBeNormedAndScaled) {
  AttentionConfig config = two_heads();
  config.v_norm = QKNorm{.eps = 1e-3, .has_weight = false};
  config.value_scale = 0.5;
  auto expected = on_heads(widened(kValue), NormWidth::head,
                           [](const Doubles& head) { return plain_norm(NormKind::rms, 1e-3, {}, {}, head); });
  for (double& value : expected) value *= 0.5;
  const Normed actual = run(config, {});
  expect_near(actual.values, expected, tolerance(kWidth));
  EXPECT_EQ(actual.keys, kKey);
}

TEST(LayerNorms, WeightsThatDoNotFitTheConfigAreRefused) {
  const auto refusal = [](const std::optional<QKNorm>& norm, const auto& change) {
    AttentionConfig config = two_heads();
    config.q_layernorm = config.k_layernorm = norm;
    AttentionWeights weights;
    change(weights);
    return test::error_of([&] { (void)run(config, weights); });
  };
  const auto both = [](size_t count) {
    return [count](AttentionWeights& w) { w.q_norm = w.k_norm = std::vector<float>(count, 1.0F); };
  };
  EXPECT_EQ(refusal(QKNorm{}, both(4)), "");
  EXPECT_EQ(refusal(QKNorm{.width = NormWidth::all}, both(8)), "");
  EXPECT_THAT(refusal(QKNorm{}, both(8)), HasSubstr("q_layernorm has 8 numbers, expected 4"));
  EXPECT_THAT(refusal(QKNorm{.width = NormWidth::all}, both(4)), HasSubstr("q_layernorm has 4 numbers, expected 8"));
  EXPECT_EQ(refusal(QKNorm{.weight_per_head = true}, both(8)), "");
  EXPECT_THAT(refusal(QKNorm{.weight_per_head = true}, both(4)), HasSubstr("q_layernorm has 4 numbers, expected 8"));
  EXPECT_THAT(refusal(QKNorm{}, both(0)), HasSubstr("q_layernorm has 0 numbers"));
  EXPECT_THAT(refusal(std::nullopt, both(4)), HasSubstr("no such norm"));
  EXPECT_THAT(refusal(QKNorm{},
                      [](auto& w) {
                        w.q_norm = w.k_norm = {1, 1, NAN, 1};
                      }),
              HasSubstr("q_layernorm holds NaN"));
  // A gain that the config denies, and a bias that only a LayerNorm has, would be applied or dropped silently.
  EXPECT_THAT(refusal(QKNorm{.has_weight = false}, both(4)), HasSubstr("has_weight is false"));
  EXPECT_THAT(refusal(QKNorm{},
                      [&](auto& w) {
                        both(4)(w);
                        w.q_norm_bias = w.k_norm_bias = std::vector<float>(4);
                      }),
              HasSubstr("only a layer_norm has one"));
}

}  // namespace
}  // namespace regard
