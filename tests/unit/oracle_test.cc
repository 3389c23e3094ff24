// The oracle itself, on numbers worked out by hand.
#include "layers/oracle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <string>

namespace regard {
namespace {

OracleMatrix column(std::initializer_list<double> numbers) {
  OracleMatrix matrix(static_cast<int64_t>(numbers.size()), 1);
  matrix.numbers = numbers;
  return matrix;
}

// One head of width 1; keys 0 and ln 3, values 0 and 4 [MATH-20].
OracleAttendInput two_keys() {
  return {.heads = 1,
          .kv_heads = 1,
          .queries = column({1}),
          .keys = column({0, std::log(3.0)}),
          .values = column({0, 4}),
          .sees = [](int64_t, int64_t) { return true; }};
}

TEST(Oracle, TwoKeysWeighOneToThree) {
  const auto attended = oracle_attend(two_keys());
  EXPECT_NEAR(attended.out[0][0], 3.0, 1e-15);
  EXPECT_NEAR(attended.lse[0][0], std::log(4.0), 1e-15);
}

TEST(Oracle, ASinkIsOneMoreTermOfTheDenominator) {
  auto input = two_keys();
  input.sinks = {static_cast<float>(std::log(4.0))};
  const auto attended = oracle_attend(input);
  EXPECT_NEAR(attended.out[0][0], 1.5, 1e-7);
  EXPECT_NEAR(attended.lse[0][0], std::log(8.0), 1e-7);
}

TEST(Oracle, SeveralSinksOfAHeadAllCount) {
  auto input = two_keys();
  input.sinks = {std::log(1.0F), std::log(3.0F)};
  EXPECT_NEAR(oracle_attend(input).out[0][0], 1.5, 1e-7);
}

TEST(Oracle, ARowThatSeesNothingIsZeroWithAndWithoutASink) {
  auto input = two_keys();
  input.sees = [](int64_t, int64_t) { return false; };
  EXPECT_EQ(oracle_attend(input).out[0][0], 0.0);  // [MATH-7], [MATH-21]
  EXPECT_EQ(oracle_attend(input).lse[0][0], -INFINITY);
  input.sinks = {2.0F};
  EXPECT_EQ(oracle_attend(input).out[0][0], 0.0);
  EXPECT_EQ(oracle_attend(input).lse[0][0], 2.0);
}

TEST(Oracle, TheSoftCapBoundsScores) {
  auto input = two_keys();
  input.soft_cap = 0.5;
  const double weight = std::exp(0.5 * std::tanh(std::log(3.0) / 0.5));
  EXPECT_NEAR(oracle_attend(input).out[0][0], 4.0 * weight / (1.0 + weight), 1e-15);
}

TEST(Oracle, ConsecutiveQueryHeadsShareAKeyHead) {  // [MATH-2]
  OracleAttendInput input{.heads = 4, .kv_heads = 2, .sees = [](int64_t, int64_t) { return true; }};
  input.queries = OracleMatrix(1, 4);
  input.keys = OracleMatrix(1, 2);
  input.values = OracleMatrix(1, 2);
  input.values.numbers = {5, 7};
  const auto attended = oracle_attend(input);
  EXPECT_EQ(attended.out.numbers, (std::vector<double>{5, 5, 7, 7}));
}

// Which of the keys 0..4 each query 0..4 sees, a row of text a query.
std::string seen(const AttentionConfig& config, int64_t prefix_end = 0) {
  std::string rows;
  for (int64_t query = 0; query < 5; ++query) {
    for (int64_t key = 0; key < 5; ++key) rows += oracle_sees(config, query, key, prefix_end) ? '1' : '.';
    rows += ' ';
  }
  return rows;
}

TEST(Oracle, MasksAreThoseOfTheirDefinitions) {
  EXPECT_EQ(seen({}), "1.... 11... 111.. 1111. 11111 ");                           // [MASK-1]
  EXPECT_EQ(seen({.sliding_window = 1}), "1.... .1... ..1.. ...1. ....1 ");        // [MASK-3]
  EXPECT_EQ(seen({.sliding_window = 2}), "1.... 11... .11.. ..11. ...11 ");        // [MASK-3]
  EXPECT_EQ(seen({.sliding_window = 5}), seen({}));                                // [MASK-3]
  EXPECT_EQ(seen({.attention_chunk_size = 2}), "1.... 11... ..1.. ..11. ....1 ");  // [MASK-4]
  EXPECT_EQ(seen({.sliding_window = 2, .attention_chunk_size = 3}), "1.... 11... .11.. ...1. ...11 ");
  EXPECT_EQ(seen({.is_causal = false}), "11111 11111 11111 11111 11111 ");                             // [MASK-6]
  EXPECT_EQ(seen({.is_causal = false, .sliding_window = 1}), "1.... .1... ..1.. ...1. ....1 ");        // [MASK-25]
  EXPECT_EQ(seen({.is_causal = false, .sliding_window = 2}), "11... 111.. .111. ..111 ...11 ");        // [MASK-25]
  EXPECT_EQ(seen({.is_causal = false, .sliding_window = 3}), "11... 111.. .111. ..111 ...11 ");        // [MASK-25]
  EXPECT_EQ(seen({.is_causal = false, .attention_chunk_size = 2}), "11... 11... ..11. ..11. ....1 ");  // [MASK-26]
  EXPECT_EQ(seen({}, 3), "111.. 111.. 111.. 1111. 11111 ");                                            // [MASK-27]
  EXPECT_EQ(seen({.sliding_window = 2}, 4), "1111. 1111. .111. ..11. ...11 ");                         // [MASK-27]
  EXPECT_EQ(seen({.attention_chunk_size = 2}, 4), "11... 11... ..11. ..11. ....1 ");                   // [MASK-27]
}

// A layer of one head whose projections copy the input.
class IdentityLayer {
 public:
  explicit IdentityLayer(int64_t width) : numbers_(static_cast<size_t>(width * width)) {
    for (int64_t i = 0; i < width; ++i) numbers_[static_cast<size_t>(i * width + i)] = 1.0F;
    config.hidden_size = config.head_dim = width;
    config.num_attention_heads = config.num_key_value_heads = 1;
    weights.qkv.q = weights.qkv.k = weights.qkv.v = weights.output =
        WeightView::make(WeightType::f32, width, width, std::as_bytes(std::span(numbers_)));
  }

  // The key that `x` becomes at a position.
  [[nodiscard]] std::vector<double> key_of(const std::vector<double>& x, int64_t position) const {
    OracleMatrix hidden(1, static_cast<int64_t>(x.size()));
    hidden.numbers = x;
    return oracle(config, weights, {.hidden_states = hidden, .first_position = position}).key_values.keys.numbers;
  }

  AttentionConfig config;
  AttentionWeights weights;

 private:
  std::vector<float> numbers_;
};

void expect_near(const std::vector<double>& actual, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], tolerance) << i;
}

TEST(Oracle, RotationTurnsHalvesOrNeighbours) {
  IdentityLayer layer(4);
  layer.config.rotary_emb = RotaryConfig{};
  expect_near(layer.key_of({1, 2, 3, 4}, 1), {-1.98411065, 1.95990067, 2.46237790, 4.01979967}, 5e-9);  // [POS-25]
  layer.config.rotary_emb->style = RotaryStyle::interleaved;
  expect_near(layer.key_of({1, 2, 3, 4}, 1), {-1.14263966, 1.92207560, 2.95985067, 4.02979950}, 5e-9);  // [POS-26]
  expect_near(layer.key_of({1, 2, 3, 4}, 0), {1, 2, 3, 4}, 0);                                          // [POS-27]
}

TEST(Oracle, PartialRotationLeavesTheRest) {
  IdentityLayer layer(6);
  layer.config.rotary_emb = RotaryConfig{.rotary_dim = 4};
  expect_near(layer.key_of({1, 2, 3, 4, 5, 6}, 1), {-1.98411065, 1.95990067, 2.46237790, 4.01979967, 5, 6}, 5e-9);
}

// The angle by which the pair (1, 0) at index 1 of four elements turns at position 1; its plain frequency is 0.01.
double second_angle(const RotaryConfig& rotary) {
  IdentityLayer layer(4);
  layer.config.rotary_emb = rotary;
  const auto key = layer.key_of({0, 1, 0, 0}, 1);
  return std::atan2(key[3], key[1]);
}

TEST(Oracle, Llama3StretchesLongWaves) {  // [POS-6]; the wavelength of the second pair is 200 pi, some 628
  RotaryConfig rotary{.scaling = RopeScaling::llama3, .factor = 8, .low_freq_factor = 1, .high_freq_factor = 4};
  rotary.original_max_position_embeddings = 4 * 629;
  EXPECT_NEAR(second_angle(rotary), 0.01, 1e-12);
  rotary.original_max_position_embeddings = 628;
  EXPECT_NEAR(second_angle(rotary), 0.01 / 8, 1e-12);
  rotary.original_max_position_embeddings = 1000;
  const double kept = (1000 / (200 * std::numbers::pi) - 1) / 3;
  EXPECT_NEAR(second_angle(rotary), (1 - kept) * 0.01 / 8 + kept * 0.01, 1e-12);
}

TEST(Oracle, LinearScalingDividesAllFrequencies) {  // [POS-5]
  EXPECT_NEAR(second_angle({.scaling = RopeScaling::linear, .factor = 4}), 0.0025, 1e-12);
}

TEST(Oracle, LongropeDividesByTheListThatIsChosen) {
  IdentityLayer layer(4);
  layer.config.rotary_emb = RotaryConfig{.scaling = RopeScaling::longrope,
                                         .original_max_position_embeddings = 100,
                                         .short_factor = {1, 2},
                                         .long_factor = {1, 5}};
  layer.config.rotary_emb->longrope_factors = LongropeFactors::short_factor;
  expect_near(layer.key_of({0, 1, 0, 0}, 1), {0, std::cos(0.005), 0, std::sin(0.005)}, 1e-15);
  layer.config.rotary_emb->longrope_factors = LongropeFactors::long_factor;
  expect_near(layer.key_of({0, 1, 0, 0}, 1), {0, std::cos(0.002), 0, std::sin(0.002)}, 1e-15);
}

TEST(Oracle, YarnRampsOverThePairsAndConcentrates) {  // [POS-7]
  IdentityLayer layer(32);
  layer.config.rotary_emb = RotaryConfig{
      .scaling = RopeScaling::yarn, .factor = 4, .original_max_position_embeddings = 4096, .truncate = false};
  // low = 16 ln(4096 / (64 pi)) / ln 10000 = 5.24 and high = 16 ln(4096 / (2 pi)) / ln 10000 = 11.26.
  const double concentration = 0.1 * std::log(4.0) + 1.0;
  const auto angle_of = [&](size_t pair) {
    std::vector<double> x(32);
    x[pair] = 1;
    const auto key = layer.key_of(x, 1);
    EXPECT_NEAR(std::hypot(key[pair], key[pair + 16]), concentration, 1e-14);
    return std::atan2(key[pair + 16], key[pair]) / std::pow(10000.0, -static_cast<double>(pair) / 16.0);
  };
  EXPECT_NEAR(angle_of(5), 1.0, 1e-12);
  EXPECT_NEAR(angle_of(12), 0.25, 1e-12);
  const double scale = 16 / std::log(10000.0);
  const double low = scale * std::log(4096 / (64 * std::numbers::pi));
  const double high = scale * std::log(4096 / (2 * std::numbers::pi));
  EXPECT_NEAR(angle_of(8), 1.0 - 0.75 * (8 - low) / (high - low), 1e-12);
}

TEST(Oracle, NormsFollowTheirKinds) {
  IdentityLayer layer(2);
  layer.config.q_layernorm = layer.config.k_layernorm = QKNorm{.kind = NormKind::rms, .eps = 0.5};
  layer.weights.q_norm = layer.weights.k_norm = {2, 3};
  // mean of squares 12.5, plus 0.5: 13
  expect_near(layer.key_of({3, 4}, 0), {6 / std::sqrt(13.0), 12 / std::sqrt(13.0)}, 1e-14);
  layer.config.k_layernorm->kind = NormKind::rms_plus_one;
  expect_near(layer.key_of({3, 4}, 0), {9 / std::sqrt(13.0), 16 / std::sqrt(13.0)}, 1e-14);
  layer.config.k_layernorm->kind = NormKind::layer_norm;
  layer.weights.k_norm_bias = {1, 10};
  // mean 3.5, variance 0.25, plus 0.5: 0.75
  expect_near(layer.key_of({3, 4}, 0), {1 - 1 / std::sqrt(0.75), 10 + 1.5 / std::sqrt(0.75)}, 1e-14);
}

}  // namespace
}  // namespace regard
