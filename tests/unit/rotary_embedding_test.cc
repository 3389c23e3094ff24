// The tables of the rotary embedding: frequencies, cos and sin, and the key that says whose they are.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "regard/position.h"
#include "support/error_of.h"

namespace regard {
namespace {

// Frequencies in long double, straight from the formulas.
long double plain_frequency(const RotaryConfig& config, int64_t i) {
  return powl(static_cast<long double>(config.rope_theta),
              -2.0L * static_cast<long double>(i) / static_cast<long double>(config.rotary_dim));
}

double frequency(const RotaryConfig& config, size_t i) { return RotaryEmbedding(config).frequencies()[i]; }

// The rotation as families set it up for sequences of up to `length` tokens.
RotaryConfig for_length(RotaryConfig config, int64_t length) {
  config.longrope_factors = config.longrope_factors_for(length);
  return config;
}

constexpr double kRelative = 1e-13;
void expect_close(double actual, double expected) { EXPECT_NEAR(actual, expected, kRelative * std::abs(expected)); }

// [POS-3], [POS-25]
TEST(RotaryEmbedding, PlainFrequenciesFallFromOneByPowersOfTheBase) {
  const RotaryConfig config{.rotary_dim = 4};
  expect_close(frequency(config, 0), 1.0);
  expect_close(frequency(config, 1), 0.01);
  EXPECT_EQ(RotaryEmbedding(config).frequencies().size(), 2U);
  EXPECT_EQ(RotaryEmbedding(config).attention_factor(), 1.0);
}

// [POS-5]
TEST(RotaryEmbedding, LinearScalingDividesAllFrequencies) {
  const RotaryConfig config{.rotary_dim = 4, .scaling = RopeScaling::linear, .factor = 8};
  expect_close(frequency(config, 0), 0.125);
  expect_close(frequency(config, 1), 0.00125);
}

// [POS-6], with Llama 3.1's parameters: pair 28 is the last one that is kept, 35 the first that is divided by 8.
TEST(RotaryEmbedding, Llama3KeepsShortWavelengthsStretchesLongOnesAndBlendsBetween) {
  const RotaryConfig config{.rotary_dim = 128, .rope_theta = 500000, .scaling = RopeScaling::llama3, .factor = 8};
  expect_close(frequency(config, 0), 1.0);
  expect_close(frequency(config, 28), 0.003211445994752591);
  expect_close(frequency(config, 29), 0.002166570763503359);
  expect_close(frequency(config, 34), 0.0001785078127679964);
  expect_close(frequency(config, 35), 9.556212353964683e-05);
  expect_close(frequency(config, 63), 3.068925988914511e-07);
}

// [POS-6]: pair 0 has wavelength 2 pi; orig/high or orig/low is put a hair below and above it.
TEST(RotaryEmbedding, Llama3HasNoStepAtEitherEdge) {
  constexpr double kHair = 1e-9;
  RotaryConfig config{.rotary_dim = 2, .scaling = RopeScaling::llama3, .factor = 8};
  config.original_max_position_embeddings = 1000;
  const double turns = 1000 / (2 * std::numbers::pi);
  for (const double hair : {-kHair, kHair}) {
    config.low_freq_factor = 1;
    config.high_freq_factor = turns * (1 + hair);
    EXPECT_NEAR(frequency(config, 0), 1.0, 1e-8);
    config.low_freq_factor = turns * (1 + hair);
    config.high_freq_factor = 2 * turns;
    EXPECT_NEAR(frequency(config, 0), 0.125, 1e-8);
  }
  // Well outside the blend, with factors other than the defaults.
  config.low_freq_factor = 2 * turns;
  config.high_freq_factor = 3 * turns;
  EXPECT_EQ(frequency(config, 0), 0.125);
  config.low_freq_factor = turns / 4;
  config.high_freq_factor = turns / 2;
  EXPECT_EQ(frequency(config, 0), 1.0);
  // Halfway between the edges, in turns, the blend is half of each.
  config.low_freq_factor = turns / 2;
  config.high_freq_factor = turns * 3 / 2;
  EXPECT_NEAR(frequency(config, 0), (1.0 + 0.125) / 2, 1e-12);
}

// [POS-7], with gpt-oss's parameters: the ramp goes from dimension 8.09 to 17.4.
TEST(RotaryEmbedding, YarnRampsFromKeptToDividedFrequencies) {
  const RotaryConfig config{.rotary_dim = 64,
                            .rope_theta = 150000,
                            .scaling = RopeScaling::yarn,
                            .factor = 32,
                            .original_max_position_embeddings = 4096,
                            .truncate = false};
  expect_close(frequency(config, 0), 1.0);
  expect_close(frequency(config, 8), 0.050813274815461475);
  expect_close(frequency(config, 9), 0.03170569618466377);
  expect_close(frequency(config, 13), 0.0038603593171920685);
  expect_close(frequency(config, 17), 0.0001293187012450632);
  expect_close(frequency(config, 18), 3.8308812373753384e-05);
  expect_close(frequency(config, 31), 3.0235114281192144e-07);
  expect_close(RotaryEmbedding(config).attention_factor(), 1.3465735902799727);
  const auto angles = RotaryEmbedding(config).angles(std::vector<int64_t>{0});
  EXPECT_EQ(angles.cos.values.elements<float>()[5], static_cast<float>(1.3465735902799727));
}

// [POS-7]
TEST(RotaryEmbedding, YarnWithoutStretchIsPlain) {
  const RotaryConfig config{.rotary_dim = 64, .rope_theta = 150000, .scaling = RopeScaling::yarn, .factor = 1};
  for (size_t i = 0; i < 32; ++i)
    expect_close(frequency(config, i), static_cast<double>(plain_frequency(config, static_cast<int64_t>(i))));
  EXPECT_EQ(RotaryEmbedding(config).attention_factor(), 1.0);
}

TEST(RotaryEmbedding, YarnTakesAnAttentionFactorThatIsGiven) {
  RotaryConfig config{.rotary_dim = 64, .rope_theta = 150000, .scaling = RopeScaling::yarn, .factor = 32};
  config.attention_factor = 1.25;
  EXPECT_EQ(RotaryEmbedding(config).attention_factor(), 1.25);
}

// Ends of the ramp that lie outside the dimensions are moved to the first or the last one.
TEST(RotaryEmbedding, YarnKeepsItsRampInsideTheDimensions) {
  RotaryConfig config{.rotary_dim = 64, .rope_theta = 150000, .scaling = RopeScaling::yarn, .factor = 32};
  config.original_max_position_embeddings = 100;  // low < 0, so that the first pair is the ramp's start
  expect_close(frequency(config, 0), 1.0);
  config.original_max_position_embeddings = int64_t{1} << 40;  // even the last pair turns often: the ramp ends at 63
  EXPECT_GT(frequency(config, 31), static_cast<double>(plain_frequency(config, 31)) / 32);
}

// Both ends at one dimension: kept up to it, stretched behind it.
TEST(RotaryEmbedding, YarnWithoutARampIsAStep) {
  RotaryConfig config{.rotary_dim = 64, .rope_theta = 150000, .scaling = RopeScaling::yarn, .factor = 32};
  config.original_max_position_embeddings = 4096;
  config.beta_slow = config.beta_fast = 32;
  config.truncate = false;
  // 32 ln(4096 / (64 pi)) / ln 150000 = 8.09
  expect_close(frequency(config, 8), static_cast<double>(plain_frequency(config, 8)));
  expect_close(frequency(config, 9), static_cast<double>(plain_frequency(config, 9)) / 32);
}

TEST(RotaryEmbedding, LongropeTakesTheLongListBeyondTheLengthOfTheTraining) {
  const RotaryConfig config{.rotary_dim = 4,
                            .scaling = RopeScaling::longrope,
                            .factor = 16,
                            .original_max_position_embeddings = 4096,
                            .short_factor = {1.0, 2.0},
                            .long_factor = {4.0, 8.0}};
  expect_close(frequency(for_length(config, 4096), 1), 0.01 / 2);
  expect_close(frequency(for_length(config, 4097), 0), 1.0 / 4);
  expect_close(frequency(for_length(config, 4097), 1), 0.01 / 8);
  // sqrt(1 + ln 16 / ln 4096) = sqrt(1 + 1/3)
  expect_close(RotaryEmbedding(config).attention_factor(), std::sqrt(4.0 / 3.0));
}

TEST(RotaryEmbedding, LongropeTakesAnAttentionFactorThatIsGiven) {
  RotaryConfig config{
      .rotary_dim = 2, .scaling = RopeScaling::longrope, .factor = 16, .short_factor = {1.0}, .long_factor = {1.0}};
  config.attention_factor = 1.19;
  EXPECT_EQ(RotaryEmbedding(config).attention_factor(), 1.19);
  config.attention_factor.reset();
  config.factor = 1;
  EXPECT_EQ(RotaryEmbedding(config).attention_factor(), 1.0);
}

// Far out an angle in f32 would be off by whole radians.
TEST(RotaryEmbedding, AnglesKeepTheirDigitsAtAMillionTokens) {
  const std::vector<int64_t> positions = {0, 1, 4095, 4096, 131071, 524287, 999'999, 1'000'000};
  for (const double theta : {10000.0, 500000.0, 1e6}) {
    const RotaryConfig config{.rotary_dim = 128, .rope_theta = theta};
    const auto angles = RotaryEmbedding(config).angles(positions);
    ASSERT_EQ(angles.cos.values.shape(), (Shape{8, 64}));
    for (size_t t = 0; t < positions.size(); ++t)
      for (int64_t i = 0; i < 64; ++i) {
        const long double angle = static_cast<long double>(positions[t]) * plain_frequency(config, i);
        const size_t index = t * 64 + static_cast<size_t>(i);
        EXPECT_NEAR(angles.cos.values.elements<float>()[index], static_cast<double>(cosl(angle)), 1e-6);
        EXPECT_NEAR(angles.sin.values.elements<float>()[index], static_cast<double>(sinl(angle)), 1e-6);
      }
  }
}

// [POS-15], [GAP-13]: tables fit where every parameter that shapes them is the same, and nowhere else.
TEST(RotaryEmbedding, TablesMatchOnlyTheirOwnRotationAndPositions) {
  const std::vector<int64_t> positions = {3, 4, 5};
  const RotaryConfig config{.rotary_dim = 8};
  const RotaryEmbedding rotary(config);
  const auto angles = rotary.angles(positions);
  EXPECT_EQ(angles.cos.key, rotary.key(positions));
  EXPECT_EQ(angles.cos.key, RotaryEmbedding(config).key(positions));

  EXPECT_NE(angles.cos.key, rotary.key(std::vector<int64_t>{3, 4, 6}));
  EXPECT_NE(angles.cos.key, rotary.key(std::vector<int64_t>{3, 5, 4}));
  EXPECT_NE(angles.cos.key, rotary.key(std::vector<int64_t>{3, 4}));
  EXPECT_NE(RotaryEmbedding({.rotary_dim = 8, .rope_theta = 1e6}).key(positions), angles.cos.key);
  EXPECT_NE(RotaryEmbedding({.rotary_dim = 4}).key(positions), angles.cos.key);
  const RotaryConfig linear{.rotary_dim = 8, .scaling = RopeScaling::linear, .factor = 2};
  EXPECT_NE(RotaryEmbedding(linear).key(positions), angles.cos.key);
}

TEST(RotaryEmbedding, LongropeTablesMatchOnlyOnTheirSideOfTheTrainingLength) {
  const RotaryConfig config{.rotary_dim = 2,
                            .scaling = RopeScaling::longrope,
                            .original_max_position_embeddings = 100,
                            .short_factor = {1.0},
                            .long_factor = {2.0}};
  const std::vector<int64_t> positions = {5};
  const auto angles = RotaryEmbedding(for_length(config, 100)).angles(positions);
  EXPECT_EQ(RotaryEmbedding(for_length(config, 6)).key(positions), angles.cos.key);
  EXPECT_NE(RotaryEmbedding(for_length(config, 101)).key(positions), angles.cos.key);
}

}  // namespace
}  // namespace regard
