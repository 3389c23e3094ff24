#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "regard/attention_config.h"
#include "regard/linear.h"
#include "regard/tensor.h"
#include "regard/workspace.h"

namespace regard {

/// The projections of a layer as the checkpoint stores them: either `qkv` (rows q, k, v) or the three of their own.
struct QkvWeights {
  StoredMatrix qkv, q, k, v;
  std::vector<float> qkv_bias, q_bias, k_bias, v_bias;  ///< Empty: none.
  /// The stored row that is row r of all heads; empty: as stored.
  std::vector<int64_t> q_row_order, k_row_order;
};

/// The heads that one rank holds: heads of the checkpoint in the rank's order, -1 for a head of zeros.
/// Empty: all heads, as stored.
struct HeadShard {
  std::span<const int64_t> q_heads;
  std::span<const int64_t> kv_heads;
};

/// hidden states -> queries, keys and values of one rank [PROJ-15], [PROJ-25].
///
/// Thread safety: several threads may call const methods at once, each with a workspace of its own.
class QkvProjection {
 public:
  /// Weights and config are those of the whole layer; only the rows of the shard's heads are read and kept [PROJ-12].
  /// Throws Error where shapes, biases or the fused form disagree with the config, or the shard names other heads.
  [[nodiscard]] static QkvProjection load(const QkvWeights& weights, const AttentionConfig& config,
                                          const Threads& threads, const HeadShard& shard = {});

  /// x [tokens, input_size] -> q [tokens, heads * head_dim], k [tokens, kv_heads * head_dim], v [tokens, kv_heads *
  /// v_head_dim], f32, with bias and clip_qkv applied [PROJ-16], [PROJ-17]; heads are those of the shard. Empty views
  /// are left out.
  void forward(ConstTensorView x, TensorView q, TensorView k, TensorView v, Workspace& workspace) const;

  [[nodiscard]] const Linear& q() const { return q_; }
  [[nodiscard]] const Linear& k() const { return k_; }
  [[nodiscard]] const Linear& v() const { return v_; }
  [[nodiscard]] int64_t bytes() const { return q_.bytes() + k_.bytes() + v_.bytes(); }

 private:
  Linear q_, k_, v_;
  std::optional<float> clip_;
};

/// attended heads -> hidden states of one rank [PROJ-19].
///
/// Thread safety: several threads may call const methods at once, each with a workspace of its own.
class OutputProjection {
 public:
  /// weight [hidden_size, heads * v_head_dim], of which only the columns of the shard's query heads are read and kept.
  /// The bias stays whole: whoever sums the ranks' outputs adds it on one of them. Throws Error where shapes or the
  /// bias disagree with the config, or the shard names other heads.
  [[nodiscard]] static OutputProjection load(const StoredMatrix& weight, std::span<const float> bias,
                                             const AttentionConfig& config, const Threads& threads,
                                             const HeadShard& shard = {});

  /// x [tokens, heads * v_head_dim], the shard's heads in order [PROJ-20] -> out [tokens, hidden_size], f32, bias added
  /// once [PROJ-17].
  void forward(ConstTensorView x, TensorView out, Workspace& workspace) const;

  [[nodiscard]] const Linear& linear() const { return linear_; }
  [[nodiscard]] int64_t bytes() const { return linear_.bytes(); }

 private:
  Linear linear_;
};

}  // namespace regard
