#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "regard/decoder.h"
#include "regard/sampler.h"
#include "regard/tokenizer.h"

// What the command does with a decoder: continue a text, and score one.
namespace regard {

struct GenerateOptions {
  int64_t max_tokens = 128;
  SamplerConfig sampler;
  DType cache_dtype = DType::f32;
  // Called with each token as it comes; false stops the generation.
  std::function<bool(int32_t)> on_token = [](int32_t) { return true; };
};

struct GenerateResult {
  std::vector<int32_t> tokens;  // the end token included
  double prefill_seconds = 0;
  double decode_seconds = 0;  // of all tokens but the first, which prefill gives
};

// Continues a prompt until an end token, max_tokens or the context's end. Throws Error for an empty prompt, or one
// longer than the model's context.
[[nodiscard]] GenerateResult generate(const Decoder& decoder, const Tokenizer& tokenizer,
                                      std::span<const int32_t> prompt, const GenerateOptions& options,
                                      Workspace& workspace);

struct Score {
  double mean_nll = 0;  // nats a token, over tokens 1..n-1
  double seconds = 0;
};

// Calls `progress` with the tokens done so far. Throws Error for fewer than two tokens, or more than the context holds.
[[nodiscard]] Score score(const Decoder& decoder, std::span<const int32_t> tokens, Workspace& workspace,
                          const std::function<void(int64_t)>& progress, DType cache_dtype = DType::f32);

}  // namespace regard
