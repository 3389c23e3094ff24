#pragma once

#include <cstdint>
#include <vector>

#include "regard/attention.h"

namespace regard::test {

/// A layer and the f32 numbers of its projections, row by row. Tests change them before they load it.
struct TestLayer {
  AttentionConfig config;
  std::vector<float> q, k, v, output;
  AttentionWeights weights;  ///< Everything but the matrices.

  [[nodiscard]] Attention load(int threads = 1) const;
  /// The matrices as views, with the rest of `weights`.
  [[nodiscard]] AttentionWeights views() const;
};

/// Random projections; gains, biases and sinks too, as the config asks for them.
[[nodiscard]] TestLayer random_layer(const AttentionConfig& config, uint64_t seed);

/// A layer whose projections only pick numbers: a hidden row is queries, keys and values side by side, and the output
/// row starts with the attended heads, so that a test sees the attention itself. hidden_size follows from the heads.
[[nodiscard]] TestLayer transparent_layer(AttentionConfig config);

/// Hidden rows for a transparent layer from queries [tokens, heads * head_dim], keys [tokens, kv_heads * head_dim] and
/// values [tokens, kv_heads * v_head_dim].
[[nodiscard]] Tensor hidden_rows(const AttentionConfig& config, const std::vector<float>& q,
                                 const std::vector<float>& k, const std::vector<float>& v);

/// The attended heads [tokens, heads * v_head_dim] in a transparent layer's output.
[[nodiscard]] std::vector<float> attended_heads(const AttentionConfig& config, const Tensor& hidden_states);

}  // namespace regard::test
