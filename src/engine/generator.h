#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "regard/model.h"
#include "regard/sampler.h"

// What the command does with a model: continue a text, and score one.
namespace regard {

struct GenerateOptions {
  int64_t max_tokens = 128;
  SamplerConfig sampler;
  DType cache_dtype = DType::f32;
  // Tokens that a step may guess from the text so far and check together with the next one; 0: none. The tokens
  // generated are the same, whatever the sampler's settings.
  int64_t draft_length = 0;
  std::string restore_from = {};  // a saved sequence that the prompt, which may then be empty, continues
  std::string save_to = {};       // where the sequence is saved afterwards
  std::string model_digest = {};  // which saved sequences name, and which those that are restored must have; "": none
  // Called with each token as it comes; false stops the generation, so that ranks have to return the same.
  std::function<bool(int32_t)> on_token = [](int32_t) { return true; };
  // Called before each token is handed on; where any rank returns true, all stop behind that token.
  std::function<bool()> interrupted = [] { return false; };
};

struct GenerateResult {
  std::vector<int32_t> tokens;  // the end token included
  int64_t restored_tokens = 0;  // that did not have to run
  int64_t prefill_tokens = 0;   // that ran to give the first token
  int64_t draft_tokens = 0;     // that were guessed
  int64_t accepted_tokens = 0;  // of those, the ones that came true
  bool interrupted = false;
  double prefill_seconds = 0;
  double decode_seconds = 0;  // of all tokens but the first, which prefill gives
};

// Continues a prompt until one of `end_tokens`, max_tokens or the context's end. Throws Error for an empty text, or one
// longer than the model's context, for a draft_length out of 0 to 64, for what restore_sequence and save_sequence
// refuse, and on all ranks where they draw different tokens.
[[nodiscard]] GenerateResult generate(const Model& model, std::span<const int32_t> prompt,
                                      std::span<const int32_t> end_tokens, const GenerateOptions& options,
                                      Workspace& workspace);

// The same refusals of the settings and the text's length, without the weights: before they are loaded. Of a saved
// sequence only the tokens are looked at.
void check_generate(const ModelSpec& spec, std::span<const int32_t> prompt, const GenerateOptions& options);

struct Score {
  double mean_nll = 0;  // nats a token, over tokens 1..n-1
  double seconds = 0;
};

// Calls `progress` with the tokens done so far. Throws Error for fewer than two tokens, or more than the context holds,
// and on all ranks where they have different logits.
[[nodiscard]] Score score(const Model& model, std::span<const int32_t> tokens, Workspace& workspace,
                          const std::function<void(int64_t)>& progress, DType cache_dtype = DType::f32);
// The same refusals, without the weights.
void check_score(const ModelSpec& spec, std::span<const int32_t> tokens);

}  // namespace regard
