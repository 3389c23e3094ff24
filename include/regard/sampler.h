#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace regard {

/// How the next token is drawn from the logits.
struct SamplerConfig {
  float temperature =
      0.0F;            ///< 0: greedy, the largest logit (the lowest id among equals); otherwise > 0 divides the logits.
  int32_t top_k = 0;   ///< 0: off; otherwise only the k largest logits.
  float top_p = 1.0F;  ///< 1: off; otherwise in (0, 1]: the smallest set of most likely tokens whose mass reaches p.
  uint64_t seed = 0;
  int32_t vocabulary = 0;  ///< 0: off; otherwise only ids below it: a model's head may have rows without a token.
};

/// Draws tokens. The same seed, logits and settings give the same tokens on every machine.
///
/// Thread safety: one thread at a time uses a sampler; each text has its own.
class Sampler {
 public:
  /// Throws Error for a negative temperature, top_k or vocabulary, or top_p outside (0, 1]; NaN is outside.
  explicit Sampler(const SamplerConfig& config);
  /// The index of the chosen token. Order: top_k, temperature, top_p, as transformers does.
  /// Throws Error if logits are empty or hold NaN.
  [[nodiscard]] int32_t sample(std::span<const float> logits);

 private:
  SamplerConfig config_;
  std::mt19937_64 generator_;
};

/// The natural logarithm of the softmax of the logits, at a token; computed in double. Throws Error for a token that
/// has no logit. Several threads may call it.
[[nodiscard]] double log_probability(std::span<const float> logits, int32_t token);

struct TokenLogProbability {
  int32_t token = 0;
  double log_probability = 0;
};
/// Those of the `count` largest logits, the largest first and among equals the lower id; of all where there are fewer.
[[nodiscard]] std::vector<TokenLogProbability> top_log_probabilities(std::span<const float> logits, int32_t count);

}  // namespace regard
