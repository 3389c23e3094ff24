#pragma once

#include "regard/attention.h"

namespace regard {

// What comes before the projection [CFG-30], [OUT-6].

// Throws Error for a norm that does not fit the layer.
void check_rmsnorm(const AttentionOptions& options, const AttentionConfig& config);

// The residual that a call returns: with rmsnorm the sum of input and residual, of the input's type, which is then the
// input of the norm; otherwise the residual as it came.
[[nodiscard]] Tensor residual_of(ConstTensorView input, const AttentionOptions& options, const Threads& threads);

// Rows of x as the projection reads them: normed in f32, in the workspace's memory, where there is a norm.
[[nodiscard]] ConstTensorView normed_rows(ConstTensorView x, ConstTensorView gain, const AttentionConfig& config,
                                          Workspace& workspace);

}  // namespace regard
