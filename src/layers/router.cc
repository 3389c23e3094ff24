#include "layers/router.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "tensor/fail.h"

namespace regard {
namespace {

constexpr double kTaken = std::numeric_limits<double>::quiet_NaN();

// The largest key that is not taken, of those of equal size the first.
size_t largest(std::span<const double> keys) {
  size_t best = keys.size();
  for (size_t i = 0; i < keys.size(); ++i)
    if (!std::isnan(keys[i]) && (best == keys.size() || keys[i] > keys[best])) best = i;
  return best;
}

// exp(x - largest x) over their sum, in place.
void softmax(std::span<double> x) {
  const double most = *std::ranges::max_element(x);
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value - most);
  for (double& value : x) value /= sum;
}

void score(RouterScores scores, std::span<const float> logits, std::span<double> out) {
  std::ranges::copy(logits, out.begin());
  if (scores == RouterScores::softmax_then_top_k) softmax(out);
  if (scores == RouterScores::sigmoid)
    for (double& value : out) value = 1.0 / (1.0 + std::exp(-value));
}

// Takes the keys of all groups but the best ones.
void keep_best_groups(const RouterSpec& spec, std::span<double> keys, std::span<double> group_scores,
                      std::span<double> sorted) {
  const size_t size = keys.size() / group_scores.size();
  for (size_t group = 0; group < group_scores.size(); ++group) {
    const auto members = sorted.first(size);
    std::ranges::copy(keys.subspan(group * size, size), members.begin());
    std::ranges::sort(members, std::greater<>());
    group_scores[group] = 0;
    for (int64_t i = 0; i < spec.group_scored_by; ++i) group_scores[group] += members[static_cast<size_t>(i)];
  }
  for (int64_t i = 0; i < spec.groups_per_token; ++i) group_scores[largest(group_scores)] = kTaken;
  for (size_t group = 0; group < group_scores.size(); ++group)
    if (!std::isnan(group_scores[group])) std::ranges::fill(keys.subspan(group * size, size), kTaken);
}

}  // namespace

void choose_experts(const RouterSpec& spec, std::span<const float> logits, std::span<const float> selection_bias,
                    std::span<double> scratch, std::span<int64_t> chosen, std::span<float> weights) {
  const size_t experts = logits.size();
  const auto scores = scratch.first(experts);
  const auto keys = scratch.subspan(experts, experts);
  score(spec.scores, logits, scores);
  for (size_t i = 0; i < experts; ++i)
    keys[i] = scores[i] + (selection_bias.empty() ? 0.0 : static_cast<double>(selection_bias[i]));
  if (std::ranges::any_of(keys, [](double key) { return std::isnan(key); })) {
    std::iota(chosen.begin(), chosen.end(), 0);
    std::ranges::fill(weights, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  if (spec.groups > 1)
    keep_best_groups(spec, keys, scratch.subspan(2 * experts, static_cast<size_t>(spec.groups)),
                     scratch.subspan(3 * experts));
  for (int64_t& choice : chosen) {
    const size_t expert = largest(keys);
    choice = static_cast<int64_t>(expert);
    keys[expert] = kTaken;
  }
  std::ranges::sort(chosen);
  const auto wide = scratch.subspan(2 * experts, chosen.size());
  for (size_t i = 0; i < chosen.size(); ++i) wide[i] = scores[static_cast<size_t>(chosen[i])];
  if (spec.scores == RouterScores::top_k_then_softmax) {
    softmax(wide);
  } else if (spec.normalized) {
    // What transformers adds to the sum, so that sigmoids that are all 0 give no NaN.
    double sum = 1e-20;
    for (const double weight : wide) sum += weight;
    for (double& weight : wide) weight /= sum;
  }
  for (size_t i = 0; i < chosen.size(); ++i) weights[i] = static_cast<float>(wide[i] * spec.scale);
}

void check_router(const RouterSpec& spec, int64_t experts, int64_t experts_per_token) {
  require(experts >= 1 && experts_per_token >= 1 && experts_per_token <= experts,
          "mlp: experts_per_token is {}, expected 1 to the {} experts", experts_per_token, experts);
  require(spec.groups >= 1 && experts % spec.groups == 0, "mlp: {} experts form {} groups, expected a divisor", experts,
          spec.groups);
  const int64_t size = experts / spec.groups;
  require(spec.groups_per_token >= 1 && spec.groups_per_token <= spec.groups &&
              spec.groups_per_token * size >= experts_per_token,
          "mlp: a token chooses {} experts from {} groups of {}, expected groups with as many", experts_per_token,
          spec.groups_per_token, size);
  require(spec.group_scored_by >= 1 && spec.group_scored_by <= size,
          "mlp: groups of {} experts are scored by {} of them", size, spec.group_scored_by);
}

}  // namespace regard
