#include "regard/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "support/error_of.h"
#include "support/numbers.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int kDraws = 20000;

int32_t greedy(const std::vector<float>& logits) { return Sampler({}).sample(logits); }

// How often each token comes in kDraws.
std::vector<double> shares(const SamplerConfig& config, const std::vector<float>& logits) {
  Sampler sampler(config);
  std::vector<double> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) counts[static_cast<size_t>(sampler.sample(logits))] += 1.0 / kDraws;
  return counts;
}

// Five standard deviations of a share around one half, the widest; a fixed seed decides the draws anyway.
constexpr double kSpread = 5 * 0.5 / 141.0;

void expect_shares(const std::vector<double>& actual, const std::vector<double>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], kSpread) << i;
    if (expected[i] == 0) {
      EXPECT_EQ(actual[i], 0.0) << i;
    }
  }
}

// Probabilities 0.5, 0.25, 0.125, 0.125, out of order.
const std::vector<float> kLogits = {std::log(0.125F), std::log(0.5F), std::log(0.125F), std::log(0.25F)};

TEST(Sampler, TemperatureZeroTakesTheLargestLogit) {
  EXPECT_EQ(greedy({1, 3, 2}), 1);
  EXPECT_EQ(greedy({-5}), 0);
  EXPECT_EQ(greedy({-kInf, -1, kInf}), 2);
}

TEST(Sampler, AmongEqualsGreedyTakesTheLowestId) {
  EXPECT_EQ(greedy({0, 7, 7, 7}), 1);
  EXPECT_EQ(greedy({-kInf, -kInf}), 0);
}

TEST(Sampler, DrawsFollowTheSoftmax) { expect_shares(shares({.temperature = 1}, kLogits), {0.125, 0.5, 0.125, 0.25}); }

// At temperature 0.5 probabilities are squared: 16, 4, 1 and 1 of 22. At 1e6 all are equal.
TEST(Sampler, TemperatureDividesTheLogits) {
  expect_shares(shares({.temperature = 0.5F}, kLogits), {1 / 22.0, 16 / 22.0, 1 / 22.0, 4 / 22.0});
  expect_shares(shares({.temperature = 1e6F}, kLogits), {0.25, 0.25, 0.25, 0.25});
}

TEST(Sampler, TopKKeepsTheLargestLogits) {
  expect_shares(shares({.temperature = 1, .top_k = 2}, kLogits), {0, 2 / 3.0, 0, 1 / 3.0});
  expect_shares(shares({.temperature = 1, .top_k = 1}, kLogits), {0, 1, 0, 0});
  expect_shares(shares({.temperature = 1, .top_k = 100}, kLogits), {0.125, 0.5, 0.125, 0.25});
}

TEST(Sampler, AmongEqualsTopKKeepsTheLowestIds) {
  expect_shares(shares({.temperature = 1, .top_k = 3}, kLogits), {1 / 7.0, 4 / 7.0, 0, 2 / 7.0});
}

// The smallest set whose mass reaches p: 0.5 is reached by the first token alone.
TEST(Sampler, TopPKeepsTheSmallestSetThatReachesTheMass) {
  expect_shares(shares({.temperature = 1, .top_p = 0.4F}, kLogits), {0, 1, 0, 0});
  expect_shares(shares({.temperature = 1, .top_p = 0.6F}, kLogits), {0, 2 / 3.0, 0, 1 / 3.0});
  expect_shares(shares({.temperature = 1, .top_p = 0.8F}, kLogits), {1 / 7.0, 4 / 7.0, 0, 2 / 7.0});
  expect_shares(shares({.temperature = 1, .top_p = 1e-9F}, kLogits), {0, 1, 0, 0});
}

// Temperature comes before top_p: flattened to a quarter each, 0.6 needs three tokens.
TEST(Sampler, TopPCountsTheMassAtItsTemperature) {
  expect_shares(shares({.temperature = 1e6F, .top_p = 0.6F}, kLogits), {1 / 3.0, 1 / 3.0, 0, 1 / 3.0});
}

// top_k comes before top_p: of the two tokens left, the first has two thirds.
TEST(Sampler, TopPCountsTheMassThatTopKLeft) {
  expect_shares(shares({.temperature = 1, .top_k = 2, .top_p = 0.6F}, kLogits), {0, 1, 0, 0});
}

TEST(Sampler, TokensOfMinusInfinityNeverCome) {
  expect_shares(shares({.temperature = 1}, {-kInf, 0, -kInf, 0}), {0, 0.5, 0, 0.5});
  expect_shares(shares({.temperature = 1}, {0, kInf, 0}), {0, 1, 0});
}

TEST(Sampler, ExtremeLogitsAndTemperaturesStayFinite) {
  expect_shares(shares({.temperature = 1e-30F}, {1e30F, -1e30F}), {1, 0});
  expect_shares(shares({.temperature = 1e-45F}, {5, 5, 4}), {0.5, 0.5, 0});
}

// The ids beyond are as if they were not there, in every setting; even where they are no numbers.
TEST(Sampler, OnlyIdsBelowTheVocabularyAreDrawn) {
  const std::vector<float> few = {0.5F, 2.0F, -1.0F, 1.5F};
  for (const float beyond : {9.0F, kInf, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> padded = few;
    padded.insert(padded.end(), 3, beyond);
    for (const SamplerConfig& config : {SamplerConfig{}, SamplerConfig{.temperature = 1},
                                        SamplerConfig{.temperature = 1, .top_k = 3, .top_p = 0.8F, .seed = 3}}) {
      SamplerConfig limited = config;
      limited.vocabulary = 4;
      Sampler expected(config);
      Sampler actual(limited);
      for (int i = 0; i < 200; ++i) ASSERT_EQ(actual.sample(padded), expected.sample(few));
    }
  }
  Sampler large(SamplerConfig{.vocabulary = 100});
  EXPECT_EQ(large.sample(few), 1);
}

TEST(Sampler, ASeedRepeatsItsDrawsAndAnotherDoesNot) {
  const auto logits = test::Numbers(111).floats(1000);
  const auto draws = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<int32_t> tokens(50);
    for (int32_t& token : tokens) token = sampler.sample(logits);
    return tokens;
  };
  EXPECT_EQ(draws(1), draws(1));
  EXPECT_NE(draws(1), draws(2));
  const auto tokens = draws(3);
  EXPECT_GT(std::set<int32_t>(tokens.begin(), tokens.end()).size(), 30U);
}

// The generator is the standard's mt19937_64 and its 53 upper bits: the first draw of seed 5489 is
// 14514284786278117030 / 2^64 = 0.787, by the published first output of the generator.
TEST(Sampler, DrawsAreTheSameOnEveryMachine) {
  const std::vector<float> equal(1000);
  EXPECT_EQ(Sampler({.temperature = 1, .seed = 5489}).sample(equal), 786);
}

TEST(Sampler, GreedyNeedsNoRandomNumbers) {
  Sampler sampler({.temperature = 0, .seed = 9});
  for (int i = 0; i < 5; ++i) EXPECT_EQ(sampler.sample(kLogits), 1);
}

TEST(Sampler, RefusesSettingsOutOfRange) {
  const auto refusal = [](const SamplerConfig& config) { return error_of([&] { (void)Sampler(config); }); };
  EXPECT_THAT(refusal({.temperature = -1}), HasSubstr("temperature is -1"));
  EXPECT_THAT(refusal({.temperature = NAN}), HasSubstr("temperature is nan"));
  EXPECT_THAT(refusal({.temperature = kInf}), HasSubstr("temperature is inf"));
  EXPECT_THAT(refusal({.top_k = -1}), HasSubstr("top_k is -1"));
  EXPECT_THAT(refusal({.top_p = 0}), HasSubstr("top_p is 0"));
  EXPECT_THAT(refusal({.top_p = 1.5F}), HasSubstr("top_p is 1.5"));
  EXPECT_THAT(refusal({.top_p = NAN}), HasSubstr("top_p is nan"));
}

TEST(Sampler, RefusesLogitsThatAreNone) {
  for (const float temperature : {0.0F, 1.0F}) {
    Sampler sampler({.temperature = temperature});
    EXPECT_THAT(error_of([&] { (void)sampler.sample({}); }), HasSubstr("no logits"));
    const std::vector<float> nan = {1, NAN};
    EXPECT_THAT(error_of([&] { (void)sampler.sample(nan); }), HasSubstr("NaN"));
  }
}

}  // namespace
}  // namespace regard
