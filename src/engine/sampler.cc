#include "regard/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tensor/fail.h"
#include "tensor/float_environment.h"

namespace regard {
namespace {

struct Choice {
  int32_t token;
  double weight;
};

// Tokens, the most likely first and among equals the lower id. Sorted no further than asked for: a vocabulary has
// 100,000 tokens, and mostly the first few decide.
class Ranking {
 public:
  explicit Ranking(std::span<const float> logits) : less_likely_{logits}, heap_(logits.size()) {
    std::iota(heap_.begin(), heap_.end(), 0);
    std::ranges::make_heap(heap_, less_likely_);
  }

  int32_t next() {
    std::ranges::pop_heap(heap_, less_likely_);
    const int32_t token = heap_.back();
    heap_.pop_back();
    return token;
  }

 private:
  struct LessLikely {
    std::span<const float> logits;
    bool operator()(int32_t a, int32_t b) const {
      const float logit_a = logits[static_cast<size_t>(a)];
      const float logit_b = logits[static_cast<size_t>(b)];
      return logit_a != logit_b ? logit_a < logit_b : a > b;
    }
  };

  LessLikely less_likely_;
  std::vector<int32_t> heap_;
};

// 53 random bits in [0, 1). The standard library's distributions differ from one implementation to the next.
double uniform(std::mt19937_64& generator) { return static_cast<double>(generator() >> 11) * 0x1p-53; }

// The logarithm of the sum of exp(logits).
double log_sum(std::span<const float> logits) {
  const auto largest = static_cast<double>(*std::ranges::max_element(logits));
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return std::log(sum) + largest;
}

}  // namespace

Sampler::Sampler(const SamplerConfig& config) : config_(config), generator_(config.seed) {
  require(config.temperature >= 0 && std::isfinite(config.temperature),
          "sampler: temperature is {}, expected 0 or more", config.temperature);
  require(config.top_k >= 0, "sampler: top_k is {}, expected 0 (off) or more", config.top_k);
  require(config.vocabulary >= 0, "sampler: vocabulary is {}, expected 0 (off) or more", config.vocabulary);
  require(config.top_p > 0 && config.top_p <= 1, "sampler: top_p is {}, expected more than 0 and at most 1",
          config.top_p);
}

int32_t Sampler::sample(std::span<const float> logits) {
  const FloatEnvironment environment;
  if (config_.vocabulary > 0) logits = logits.first(std::min(logits.size(), static_cast<size_t>(config_.vocabulary)));
  require(!logits.empty(), "sampler: there are no logits");
  require(std::ranges::none_of(logits, [](float logit) { return std::isnan(logit); }), "sampler: the logits hold NaN");
  const float largest = *std::ranges::max_element(logits);
  if (config_.temperature == 0) return static_cast<int32_t>(std::ranges::find(logits, largest) - logits.begin());

  const auto weight_of = [&](float logit) {
    // An infinite logit is infinitely far from itself by subtraction; it is the largest all the same.
    if (logit == largest) return 1.0;
    return std::exp((static_cast<double>(logit) - static_cast<double>(largest)) /
                    static_cast<double>(config_.temperature));
  };
  Ranking ranking(logits);
  std::vector<Choice> choices;
  // The choice of that rank, which is at most one past those known so far.
  const auto choice = [&](size_t rank) {
    if (rank == choices.size()) {
      const int32_t token = ranking.next();
      choices.push_back({.token = token, .weight = weight_of(logits[static_cast<size_t>(token)])});
    }
    return choices[rank];
  };

  size_t count = logits.size();
  double total = 0;
  if (config_.top_k > 0 && static_cast<size_t>(config_.top_k) < count) {
    count = static_cast<size_t>(config_.top_k);
    for (size_t rank = 0; rank < count; ++rank) total += choice(rank).weight;
  } else {
    for (const float logit : logits) total += weight_of(logit);
  }
  if (config_.top_p < 1) {
    const double mass = static_cast<double>(config_.top_p) * total;
    total = 0;
    size_t kept = 0;
    while (kept < count && total < mass) total += choice(kept++).weight;
    count = kept;
  }
  double target = uniform(generator_) * total;
  int32_t drawn = choice(0).token;
  for (size_t rank = 0; rank < count && target >= 0; ++rank) {
    // Rounding may leave some of the target at the end; tokens without weight don't get it.
    const Choice next = choice(rank);
    if (next.weight == 0) break;
    drawn = next.token;
    target -= next.weight;
  }
  return drawn;
}

double log_probability(std::span<const float> logits, int32_t token) {
  const FloatEnvironment environment;
  require(token >= 0 && static_cast<size_t>(token) < logits.size(),
          "log probability: token is {}, expected one of {} logits", token, logits.size());
  return static_cast<double>(logits[static_cast<size_t>(token)]) - log_sum(logits);
}

std::vector<TokenLogProbability> top_log_probabilities(std::span<const float> logits, int32_t count) {
  const FloatEnvironment environment;
  const size_t kept = std::min(logits.size(), static_cast<size_t>(std::max(count, 0)));
  std::vector<TokenLogProbability> top;
  if (kept == 0) return top;
  const double total = log_sum(logits);
  Ranking ranking(logits);
  while (top.size() < kept) {
    const int32_t token = ranking.next();
    top.push_back({.token = token, .log_probability = static_cast<double>(logits[static_cast<size_t>(token)]) - total});
  }
  return top;
}

}  // namespace regard
