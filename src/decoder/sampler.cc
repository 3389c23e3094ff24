#include "regard/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tensor/fail.h"

namespace regard {
namespace {

struct Choice {
  int32_t token;
  double weight;
};

// 53 random bits in [0, 1). The standard library's distributions differ from one implementation to the next.
double uniform(std::mt19937_64& generator) { return static_cast<double>(generator() >> 11) * 0x1p-53; }

}  // namespace

Sampler::Sampler(const SamplerConfig& config) : config_(config), generator_(config.seed) {
  require(config.temperature >= 0 && std::isfinite(config.temperature),
          "sampler: temperature is {}, expected 0 or more", config.temperature);
  require(config.top_k >= 0, "sampler: top_k is {}, expected 0 (off) or more", config.top_k);
  require(config.top_p > 0 && config.top_p <= 1, "sampler: top_p is {}, expected more than 0 and at most 1",
          config.top_p);
}

int32_t Sampler::sample(std::span<const float> logits) {
  require(!logits.empty(), "sampler: there are no logits");
  require(std::ranges::none_of(logits, [](float logit) { return std::isnan(logit); }), "sampler: the logits hold NaN");
  const float largest = *std::ranges::max_element(logits);
  if (config_.temperature == 0) return static_cast<int32_t>(std::ranges::find(logits, largest) - logits.begin());

  // Most likely first; among equals the lower id.
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [&](int32_t token) { return logits[static_cast<size_t>(token)]; });
  if (config_.top_k > 0 && static_cast<size_t>(config_.top_k) < order.size())
    order.resize(static_cast<size_t>(config_.top_k));

  std::vector<Choice> choices;
  double total = 0;
  for (const int32_t token : order) {
    const double distance = static_cast<double>(logits[static_cast<size_t>(token)]) - static_cast<double>(largest);
    // An infinite logit is infinitely far from itself by subtraction; it is the largest all the same.
    const double weight = logits[static_cast<size_t>(token)] == largest
                              ? 1.0
                              : std::exp(distance / static_cast<double>(config_.temperature));
    choices.push_back({.token = token, .weight = weight});
    total += weight;
  }
  if (config_.top_p < 1) {
    double kept = 0;
    size_t count = 0;
    while (count < choices.size() && kept < static_cast<double>(config_.top_p) * total) kept += choices[count++].weight;
    choices.resize(std::max<size_t>(count, 1));
    total = kept;
  }
  double target = uniform(generator_) * total;
  for (const Choice& choice : choices) {
    target -= choice.weight;
    if (target < 0) return choice.token;
  }
  return choices.back().token;
}

}  // namespace regard
