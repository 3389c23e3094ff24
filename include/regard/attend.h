#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "regard/cache.h"
#include "regard/mask.h"
#include "regard/tensor.h"
#include "regard/workspace.h"

namespace regard {

/// Attention without its projections, for engines that have their own: query heads over the keys and values in a cache.
struct AttendInput {
  ConstTensorView queries;  ///< [tokens, heads, head_dim], rotated and normed; f32, bf16 or f16, dense
  /// In the order of the tokens. With a causal mask the tokens' keys and values are in the cache already. Without one
  /// a span's slot may be another sequence's, as in cross-attention: there may be more queries than keys, positions
  /// may lie past the last key, a slot may be empty, and several spans may name the same slot.
  std::span<const Span> spans;
  const KvCache* cache = nullptr;  ///< Its KV heads divide the query heads [MATH-2].
  Mask mask;
  double softmax_scale = 0.0;    ///< Multiplies the scores; 0: 1/sqrt(head_dim).
  double logit_soft_cap = 0.0;   ///< 0: off; otherwise scores become cap * tanh(score / cap).
  std::span<const float> sinks;  ///< One logit a query head, or none [MATH-6].
  TensorView output;             ///< [tokens, heads, v_head_dim], of the queries' type, dense
  TensorView lse;                ///< f32 [tokens, heads], or none: log of the sum of exp(scores), sinks included
  /// As AttentionInput::active_masks: which of a span's own tokens each of them sees.
  std::span<const ConstTensorView> active_masks;
  Workspace* workspace = nullptr;  ///< None: one of its own for this call, with a thread per core.
};

/// Writes output and lse. Rows that see nothing, and those of spans with slot -1, give zeros. A token's bits do not
/// depend on what else is in the call. Throws Error, before anything is written, for shapes or types that do not fit,
/// spans that do not add up, or keys that the cache does not hold.
/// Several threads may call it, each with a workspace of its own, as long as none changes the cache.
void attend(const AttendInput& input);

/// The same over borrowed tensors, without a cache: a batch in the layout of PyTorch's scaled_dot_product_attention.
/// Strides are arbitrary, so that transposed and sliced views need no copy. All rows of the batch have the same
/// lengths.
struct AttendBatchInput {
  ConstTensorView queries;  ///< [batch, heads, queries, head_dim]; f32, bf16 or f16
  ConstTensorView keys;     ///< [batch, kv_heads, keys, head_dim]; f32, bf16 or f16; kv_heads divides heads [MATH-2].
  ConstTensorView values;   ///< [batch, kv_heads, keys, v_head_dim]; f32, bf16 or f16
  Mask mask;
  /// Position of the first query, where the first key is at 0; none: keys - queries, so that the last query is at the
  /// last key. With a causal mask no query is past the last key.
  std::optional<int64_t> first_position;
  double softmax_scale = 0.0;    ///< Multiplies the scores; 0: 1/sqrt(head_dim).
  double logit_soft_cap = 0.0;   ///< 0: off; otherwise scores become cap * tanh(score / cap).
  std::span<const float> sinks;  ///< One logit a query head, or none [MATH-6].
  TensorView output;             ///< [batch, heads, queries, v_head_dim], of the queries' type
  TensorView lse;  ///< f32 [batch, heads, queries], or none: log of the sum of exp(scores), sinks included
  Workspace* workspace = nullptr;  ///< None: one of its own for this call, with a thread per core.
};

/// Writes output and lse, with the bits of `attend` over a cache that holds these keys and values in their own types.
/// Each call packs all keys and values anew: a text that grows wants a cache. Throws Error, before anything is written,
/// for shapes or types that do not fit, and for positions out of range. Several threads may call it, each with a
/// workspace of its own.
void attend(const AttendBatchInput& input);

}  // namespace regard
