#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "regard/model.h"

// What a model makes of given tokens, all of it at once: for files and comparisons.
namespace regard {

struct TokenOutputs {
  Tensor logits;         // f32 [tokens, vocab_size]
  Tensor hidden_states;  // f32 [layers + 1, tokens, hidden_size], as Model::ForwardOptions::hidden_states; or empty
};

struct TokenOutputsOptions {
  bool hidden_states = false;
  DType cache_dtype = DType::f32;
  std::function<void(int64_t)> progress = [](int64_t) {};  // called with the tokens done so far
};

// Runs the tokens as one sequence, in calls of 512. Collective over the model's ranks. Throws Error for no tokens, for
// more than the context holds, and for ids outside the vocabulary.
[[nodiscard]] TokenOutputs outputs_of(const Model& model, std::span<const int32_t> tokens,
                                      const TokenOutputsOptions& options, Workspace& workspace);
// The same refusals, without the weights.
void check_outputs(const ModelSpec& spec, std::span<const int32_t> tokens);

}  // namespace regard
