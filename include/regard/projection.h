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

/// Columns first .. first+count-1 of a stored matrix, or, where first is -1, so many columns of zeros.
struct Columns {
  int64_t first = 0;
  int64_t count = 0;
};

/// A weight matrix [rows, columns] in the layout that the kernels read. It keeps the numbers of the checkpoint: f32,
/// bf16 and f16 as they are, quantised blocks as their integers, scales and minimums; other types become f32. Columns
/// that cut through the groups of a quantised type get smaller groups, or become f32 where that takes no more memory.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  /// Row r is row rows[r] of `weight`, or zeros where that is -1; its columns are those of all of `columns`, one after
  /// the other. Empty: all rows, all columns, as stored. Of the weight's bytes only those are read that hold what is
  /// asked for, which for quantised types are whole blocks. Throws Error for NaN in what is read, or for rows and
  /// columns that are not there.
  [[nodiscard]] static PackedMatrix pack(const WeightView& weight, const Threads& threads,
                                         std::span<const int64_t> rows = {}, std::span<const Columns> columns = {});

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
  int64_t group_ = 0;  // columns that share a scale; 0: none do
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

/// The projections of a layer as the checkpoint stores them: either `qkv` (rows q, k, v) or the three of their own.
struct QkvWeights {
  WeightView qkv, q, k, v;
  std::vector<float> qkv_bias, q_bias, k_bias, v_bias;  ///< Empty: none.
  /// The stored row that is row r of all heads; empty: as stored.
  std::vector<int64_t> q_row_order, k_row_order;
};

/// The heads that one rank holds: heads of the checkpoint in the rank's order, -1 for a head of zeros, as GqaSharding
/// deals them out. Empty: all heads, as stored.
struct HeadShard {
  std::span<const int64_t> q_heads;
  std::span<const int64_t> kv_heads;
};

/// hidden states -> queries, keys and values of one rank [PROJ-15], [PROJ-25].
class QkvProjection {
 public:
  /// Weights and config are those of the whole layer; only the rows of the shard's heads are read and kept [PROJ-12].
  /// Throws Error where shapes, biases or the fused form disagree with the config, or the shard names other heads.
  [[nodiscard]] static QkvProjection load(const QkvWeights& weights, const AttentionConfig& config,
                                          const Threads& threads, const HeadShard& shard = {});

  /// x [tokens, input_size] -> q [tokens, heads * head_dim], k [tokens, kv_heads * head_dim], v [tokens, kv_heads *
  /// v_head_dim], f32, with bias and clip_qkv applied [PROJ-16], [PROJ-17]; heads are those of the shard.
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
  /// weight [hidden_size, heads * v_head_dim], of which only the columns of the shard's query heads are read and kept.
  /// The bias stays whole: whoever sums the ranks' outputs adds it on one of them. Throws Error where shapes or the
  /// bias disagree with the config, or the shard names other heads.
  [[nodiscard]] static OutputProjection load(const WeightView& weight, std::vector<float> bias,
                                             const AttentionConfig& config, const Threads& threads,
                                             const HeadShard& shard = {});

  /// x [tokens, heads * v_head_dim], the shard's heads in order [PROJ-20] -> out [tokens, hidden_size], f32, bias added
  /// once [PROJ-17].
  void forward(ConstTensorView x, TensorView out, Workspace& workspace) const;

  [[nodiscard]] const Linear& linear() const { return linear_; }
  [[nodiscard]] int64_t bytes() const { return linear_.weight.bytes(); }

 private:
  Linear linear_;
};

}  // namespace regard
