#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "regard/model.h"

namespace regard {

struct Score {
  double mean_nll = 0;  // nats a token, over tokens 1..n-1
  double seconds = 0;
};

// How likely a model finds a text. Calls `progress` with the tokens done so far. Throws Error for fewer than two
// tokens, or more than the context holds, and on all ranks where they have different logits.
[[nodiscard]] Score score(const Model& model, std::span<const int32_t> tokens, Workspace& workspace,
                          const std::function<void(int64_t)>& progress, DType cache_dtype = DType::f32);
// The same refusals, without the weights.
void check_score(const ModelSpec& spec, std::span<const int32_t> tokens);

}  // namespace regard
