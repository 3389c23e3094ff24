#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "regard/attention_config.h"
#include "regard/tensor.h"
#include "regard/weight.h"
#include "regard/workspace.h"

namespace regard {

namespace kernels {
struct PanelView;
}

/// A weight matrix [rows, columns] in the layout that the kernels read. It keeps the numbers of the checkpoint: f32,
/// bf16 and f16 as they are, quantised blocks as their integers, scales and minimums; other types become f32.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  /// `row_order[r]` is the row of `weight` that becomes row r; empty keeps the order. Throws Error for NaN in the
  /// weight, or an order that is no permutation's length.
  [[nodiscard]] static PackedMatrix pack(const WeightView& weight, const Threads& threads,
                                         std::span<const int64_t> row_order = {});

  [[nodiscard]] bool empty() const { return rows_ == 0; }
  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t columns() const { return columns_; }
  /// Bytes in memory.
  [[nodiscard]] int64_t bytes() const { return static_cast<int64_t>(buffer_.size()); }
  /// The type that the checkpoint stored.
  [[nodiscard]] WeightType source_type() const { return source_type_; }
  /// One row as f32. Throws Error if it is not there.
  void decode_row(int64_t row, std::span<float> out) const;

  /// What the kernels read; for the library's own use.
  [[nodiscard]] kernels::PanelView panel() const;

 private:
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  WeightType source_type_ = WeightType::f32;
  Buffer buffer_;
};

/// out = x W^T + bias, the linear layer of checkpoints.
struct Linear {
  PackedMatrix weight;
  std::vector<float> bias;  ///< [rows], or empty.
};

/// Applies layers to the same rows in one go: x [tokens, columns] (f32, bf16 or f16), outs[i] [tokens, layers[i]->rows]
/// in f32. The last axis must be dense. Throws Error if shapes disagree.
void apply(std::span<const Linear* const> layers, ConstTensorView x, std::span<const TensorView> outs,
           Workspace& workspace);

/// out = x W^T over columns first..first+count-1 of W alone: x [tokens, columns of W]. No bias; else as above.
void apply_columns(const PackedMatrix& weight, ConstTensorView x, int64_t first, int64_t count, TensorView out,
                   Workspace& workspace);

/// The projections of a layer as the checkpoint stores them: either `qkv` (rows q, k, v) or the three of their own.
struct QkvWeights {
  WeightView qkv, q, k, v;
  std::vector<float> qkv_bias, q_bias, k_bias, v_bias;  ///< Empty: none.
  std::vector<int64_t> q_row_order, k_row_order;        ///< See PackedMatrix::pack; empty: as stored.
};

/// hidden states -> queries, keys and values of one rank [PROJ-15], [PROJ-25].
class QkvProjection {
 public:
  /// Throws Error where shapes, biases or the fused form disagree with the config.
  [[nodiscard]] static QkvProjection load(const QkvWeights& weights, const AttentionConfig& config,
                                          const Threads& threads);

  /// x [tokens, input_size] -> q [tokens, heads * head_dim], k [tokens, kv_heads * head_dim], v [tokens, kv_heads *
  /// v_head_dim], f32, with bias and clip_qkv applied [PROJ-16], [PROJ-17].
  void forward(ConstTensorView x, TensorView q, TensorView k, TensorView v, Workspace& workspace) const;

  [[nodiscard]] const Linear& q() const { return q_; }
  [[nodiscard]] const Linear& k() const { return k_; }
  [[nodiscard]] const Linear& v() const { return v_; }
  [[nodiscard]] int64_t bytes() const { return q_.weight.bytes() + k_.weight.bytes() + v_.weight.bytes(); }

 private:
  Linear q_, k_, v_;
  std::optional<float> clip_;
};

/// attended heads -> hidden states of one rank [PROJ-19].
class OutputProjection {
 public:
  /// weight [hidden_size, heads * v_head_dim]. Throws Error where shapes or the bias disagree with the config.
  [[nodiscard]] static OutputProjection load(const WeightView& weight, std::vector<float> bias,
                                             const AttentionConfig& config, const Threads& threads);

  /// x [tokens, heads * v_head_dim], heads in order [PROJ-20] -> out [tokens, hidden_size], f32, bias added once
  /// [PROJ-17].
  void forward(ConstTensorView x, TensorView out, Workspace& workspace) const;

  [[nodiscard]] const Linear& linear() const { return linear_; }
  [[nodiscard]] int64_t bytes() const { return linear_.weight.bytes(); }

 private:
  Linear linear_;
};

}  // namespace regard
