#pragma once

#include <cstdint>
#include <span>

#include "regard/model_spec.h"

namespace regard {

// The experts that one token passes, and what their outputs are multiplied by, from the router's logits (bias added),
// as RouterSpec says: chosen and weights [experts_per_token], in order of the experts' index. Scores and weights are
// computed in double, and each weight is rounded once. A token whose scores are NaN (a logit is NaN, or all are -inf
// under a softmax) gets the first experts with weights of NaN, so that its output is NaN. selection_bias [experts], or
// empty. `scratch` has 4 * experts numbers.
void choose_experts(const RouterSpec& spec, std::span<const float> logits, std::span<const float> selection_bias,
                    std::span<double> scratch, std::span<int64_t> chosen, std::span<float> weights);

// Throws Error for numbers of experts and groups that do not fit each other.
void check_router(const RouterSpec& spec, int64_t experts, int64_t experts_per_token);

}  // namespace regard
