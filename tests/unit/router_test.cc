// The choice of experts against a plain one that sorts them all.
#include "layers/router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/error_of.h"
#include "support/numbers.h"

namespace regard {
namespace {

using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Chosen {
  std::vector<int64_t> experts;
  std::vector<float> weights;
};

Chosen choose(const RouterSpec& spec, const std::vector<float>& logits, size_t count,
              const std::vector<float>& bias = {}) {
  Chosen chosen{.experts = std::vector<int64_t>(count), .weights = std::vector<float>(count)};
  std::vector<double> scratch(4 * logits.size());
  choose_experts(spec, logits, bias, scratch, chosen.experts, chosen.weights);
  return chosen;
}

// The definition, expert by expert.
Chosen plain(const RouterSpec& spec, const std::vector<float>& logits, size_t count, const std::vector<float>& bias) {
  const size_t experts = logits.size();
  std::vector<double> score(experts), key(experts);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  for (size_t i = 0; i < experts; ++i) {
    const auto logit = static_cast<double>(logits[i]);
    score[i] = spec.scores == RouterScores::softmax_then_top_k ? std::exp(logit) / sum
               : spec.scores == RouterScores::sigmoid          ? 1 / (1 + std::exp(-logit))
                                                               : logit;
    key[i] = score[i] + (bias.empty() ? 0.0 : static_cast<double>(bias[i]));
  }
  const auto groups = static_cast<size_t>(spec.groups);
  const size_t size = experts / groups;
  std::vector<std::pair<double, size_t>> by_group;
  for (size_t g = 0; g < groups; ++g) {
    std::vector<double> members(key.begin() + static_cast<int64_t>(g * size),
                                key.begin() + static_cast<int64_t>((g + 1) * size));
    std::sort(members.rbegin(), members.rend());
    double total = 0;
    for (size_t i = 0; i < static_cast<size_t>(spec.group_scored_by); ++i) total += members[i];
    by_group.emplace_back(-total, g);
  }
  std::sort(by_group.begin(), by_group.end());
  std::vector<std::pair<double, int64_t>> candidates;
  for (size_t i = 0; i < static_cast<size_t>(spec.groups_per_token); ++i)
    for (size_t e = by_group[i].second * size; e < (by_group[i].second + 1) * size; ++e)
      candidates.emplace_back(-key[e], static_cast<int64_t>(e));
  std::sort(candidates.begin(), candidates.end());
  Chosen chosen;
  for (size_t i = 0; i < count; ++i) chosen.experts.push_back(candidates[i].second);
  std::sort(chosen.experts.begin(), chosen.experts.end());
  const bool softmax = spec.scores == RouterScores::top_k_then_softmax;
  double total = 0;
  for (const int64_t e : chosen.experts) {
    const double s = score[static_cast<size_t>(e)];
    total += softmax ? std::exp(s) : s;
  }
  for (const int64_t e : chosen.experts) {
    const double s = score[static_cast<size_t>(e)];
    chosen.weights.push_back(static_cast<float>(spec.scale * (softmax           ? std::exp(s) / total
                                                              : spec.normalized ? s / total
                                                                                : s)));
  }
  return chosen;
}

TEST(Router, ChoosesAndWeighsAsItsDefinition) {
  test::Numbers numbers(301);
  for (const RouterScores scores :
       {RouterScores::softmax_then_top_k, RouterScores::top_k_then_softmax, RouterScores::sigmoid})
    for (const bool normalized : {false, true})
      for (const bool biased : {false, true})
        for (const auto& [groups, taken, scored_by] :
             {std::tuple{1, 1, 1}, {4, 2, 2}, {4, 3, 1}, {8, 4, 4}, {32, 9, 1}}) {
          const RouterSpec spec{.scores = scores,
                                .normalized = normalized,
                                .scale = 1.5,
                                .groups = groups,
                                .groups_per_token = taken,
                                .group_scored_by = scored_by};
          check_router(spec, 32, 6);
          for (int repeat = 0; repeat < 20; ++repeat) {
            auto logits = numbers.floats(32);
            for (float& logit : logits) logit *= 5;
            const auto bias = biased ? numbers.floats(32) : std::vector<float>();
            const Chosen expected = plain(spec, logits, 6, bias);
            const Chosen actual = choose(spec, logits, 6, bias);
            ASSERT_EQ(actual.experts, expected.experts);
            for (size_t i = 0; i < 6; ++i)
              ASSERT_NEAR(actual.weights[i], expected.weights[i], 2e-7 * static_cast<double>(expected.weights[i]));
          }
        }
}

TEST(Router, OfEqualScoresTheLowerIndexIsChosen) {
  for (const RouterScores scores :
       {RouterScores::softmax_then_top_k, RouterScores::top_k_then_softmax, RouterScores::sigmoid}) {
    EXPECT_EQ(choose({.scores = scores}, {1, 2, 1, 2, 2, 1}, 2).experts, (std::vector<int64_t>{1, 3}));
    EXPECT_EQ(choose({.scores = scores}, {1, 2, 1, 0, 0, 1}, 3).experts, (std::vector<int64_t>{0, 1, 2}));
    EXPECT_EQ(choose({.scores = scores, .groups = 3}, {1, 2, 2, 1, 0, 0}, 1).experts, (std::vector<int64_t>{1}));
  }
}

TEST(Router, ALogitOfNaNMakesAllWeightsNaN) {
  for (const RouterScores scores :
       {RouterScores::softmax_then_top_k, RouterScores::top_k_then_softmax, RouterScores::sigmoid}) {
    const Chosen chosen = choose({.scores = scores}, {1, 2, NAN, 3}, 2);
    EXPECT_EQ(chosen.experts, (std::vector<int64_t>{0, 1}));
    for (const float weight : chosen.weights) EXPECT_TRUE(std::isnan(weight));
  }
}

TEST(Router, InfiniteLogitsChooseExpertsThatAreThere) {
  for (const RouterScores scores :
       {RouterScores::softmax_then_top_k, RouterScores::top_k_then_softmax, RouterScores::sigmoid})
    for (const float logit : {kInf, -kInf}) {
      const Chosen chosen = choose({.scores = scores}, {logit, logit, logit, logit}, 3);
      EXPECT_EQ(chosen.experts, (std::vector<int64_t>{0, 1, 2}));
    }
  EXPECT_EQ(choose({.scores = RouterScores::sigmoid}, {-kInf, -kInf}, 2).weights, (std::vector<float>{0, 0}));
}

TEST(Router, LargeLogitsDoNotOverflow) {
  EXPECT_EQ(choose({}, {1000, 0, -1000}, 2).weights, (std::vector<float>{1, 0}));
  EXPECT_EQ(choose({.scores = RouterScores::top_k_then_softmax}, {1000, 1000, -1000}, 2).weights,
            (std::vector<float>{0.5F, 0.5F}));
}

TEST(Router, RefusesNumbersThatDoNotFit) {
  const auto refusal = [](const RouterSpec& spec, int64_t experts, int64_t count) {
    return test::error_of([&] { check_router(spec, experts, count); });
  };
  EXPECT_EQ(refusal({}, 8, 8), "");
  EXPECT_THAT(refusal({}, 8, 9), HasSubstr("experts_per_token is 9, expected 1 to the 8"));
  EXPECT_THAT(refusal({}, 8, 0), HasSubstr("experts_per_token is 0"));
  EXPECT_THAT(refusal({.groups = 3}, 8, 2), HasSubstr("3 groups"));
  EXPECT_THAT(refusal({.groups = 4}, 8, 3), HasSubstr("from 1 groups of 2"));
  EXPECT_THAT(refusal({.groups = 4, .groups_per_token = 5}, 8, 3), HasSubstr("from 5 groups"));
  EXPECT_THAT(refusal({.groups = 4, .group_scored_by = 3}, 8, 2), HasSubstr("scored by 3"));
}

}  // namespace
}  // namespace regard
