#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "regard/attention_config.h"
#include "regard/cache.h"
#include "regard/mask.h"
#include "regard/parallel.h"
#include "regard/position.h"
#include "regard/projection.h"
#include "regard/tensor.h"
#include "regard/workspace.h"

namespace regard {

class Checkpoint;
class StepPlan;
struct AttentionShard;

/// The weights of one attention layer, as a checkpoint stores them.
struct AttentionWeights {
  QkvWeights qkv;
  StoredMatrix output;             ///< [hidden_size, heads * v_head_dim]
  std::vector<float> output_bias;  ///< [hidden_size], or empty
  /// Gains and biases of q_layernorm and k_layernorm: [head_dim], or [heads * head_dim] for norms over all heads and
  /// those with weight_per_head; empty: none.
  std::vector<float> q_norm, q_norm_bias, k_norm, k_norm_bias;
  std::vector<float> v_norm;  ///< [v_head_dim], or empty
  std::vector<float> sinks;   ///< [heads, learned_sinks_size] [PROJ-21]
  bool is_shard = false;      ///< The matrices and their biases are one rank's already, as Checkpoint::open_shard has
                              ///< them; norms and sinks are whole.
};

/// The keys and values that a call made, f32: [tokens, kv_heads, head_dim] and [tokens, kv_heads, v_head_dim], keys
/// rotated and normalised [OUT-14]; in the padded form [batch, kv_heads, seq, ...], as the reference returns them
/// [OUT-10].
struct KeyValue {
  Tensor key;
  Tensor value;
};

/// What a call returns. Structured bindings give the first four members, as the reference's iteration does [OUT-1],
/// [OUT-2].
struct AttentionOutput {
  /// As the input: [tokens, hidden_size] or [batch, seq, hidden_size], of the input's type [OUT-5]. Empty where the
  /// caller named an output to write to.
  Tensor hidden_states;
  KeyValue present_key_value;  ///< Where asked for.
  AngleTable cos_cache;  ///< Where asked for, for the next layer [OUT-8]; empty without rotation. A workspace keeps
                         ///< them too: layers that share it need not be handed them.
  AngleTable sin_cache;
  Tensor residual;  ///< With rmsnorm: input + residual, else the residual as it came [OUT-6].
  Tensor lse;  ///< Where asked for: f32 [tokens, heads] or [batch, seq, heads], log of the sum of exp(scores), sinks
               ///< included.
};

template <size_t I>
[[nodiscard]] const auto& get(const AttentionOutput& output) {
  static_assert(I < 4, "structured bindings reach four members");
  if constexpr (I == 0)
    return output.hidden_states;
  else if constexpr (I == 1)
    return output.present_key_value;
  else if constexpr (I == 2)
    return output.cos_cache;
  else
    return output.sin_cache;
}

/// What both forms of a call have in common.
struct AttentionOptions {
  KvCache* cache =
      nullptr;  ///< Where keys and values are read and appended; none: the call's tokens see only each other.
  ConstTensorView rmsnorm;   ///< Gain [input_size] f32 of the norm before the projection; none: the input is normed
                             ///< already [CFG-30].
  ConstTensorView residual;  ///< Shape and type of the input; with rmsnorm it is added to the input first [OUT-6].
  const AngleTable* cos_cache =
      nullptr;  ///< What an earlier layer returned; used where it fits this layer [POS-15], [GAP-13].
  const AngleTable* sin_cache = nullptr;
  std::span<const int64_t>
      rotary_position_ids;         ///< One a token: rotates by these instead of by the positions [POS-18].
  bool present_key_value = false;  ///< Whether the call returns the new keys and values.
  bool angles = false;             ///< Whether the call returns cos_cache and sin_cache.
  bool lse = false;                ///< Whether the call returns log-sum-exps.
  Workspace* workspace = nullptr;  ///< None: one of its own for this call, with a thread per core.
};

/// Packed tokens of any number of sequences: prefill, prefill in chunks and decode are spans of different lengths, and
/// may be mixed in one call.
struct AttentionInput : AttentionOptions {
  ConstTensorView hidden_states;  ///< [tokens, input_size]; f32, bf16 or f16
  std::span<const Span> spans;    ///< In the order of the tokens; their counts add up to tokens. None: one sequence,
                                  ///< which continues slot 0 of the cache, or starts at position 0 without a cache.
  TensorView output;              ///< Where to write [tokens, hidden_size], of the input's type; none: a new tensor.
  /// For drafts that branch: one [count, count] of bool or u8 a span, telling which of the span's own tokens (columns)
  /// each of them (rows) sees; itself and some before it. An empty view, or none at all: all before it [MASK-11],
  /// [MASK-12]. A token's position is then the span's first plus the number it sees but itself, and its output has the
  /// bits of its branch decoded alone. The cache holds the tokens as they come: `accept` keeps a branch.
  std::span<const ConstTensorView> active_masks;
};

/// A padded batch: one sequence a row, padding on the right or on the left.
struct PaddedAttentionInput : AttentionOptions {
  ConstTensorView hidden_states;   ///< [batch, seq, input_size]; f32, bf16 or f16
  ConstTensorView attention_mask;  ///< [batch, seq] of bool, u8, i32 or i64: 0 marks padding, at one side of a row;
                                   ///< none: no padding.
  ConstTensorView position_ids;  ///< [batch, seq] of i32 or i64; consecutive over a row's tokens. None: from 0, or from
                                 ///< the cache's length on.
  ConstTensorView active_mask;   ///< [batch, seq, seq], or [seq, seq] for all rows; as AttentionInput::active_masks.
  std::span<const int64_t> prefixes;  ///< [batch]: as Span::prefix, of each row's tokens without padding; none: 0.
  std::span<const int64_t> seq_ids;   ///< [batch]: the cache slot of each row, -1 for rows to skip; none: 0, 1, 2, ...
};

/// Attention of one layer: hidden states -> projection -> rotation -> cache -> attention -> projection.
/// A token's output has the same bits whatever it is computed with: alone or in a batch, in one prefill, in chunks or
/// one by one, by any number of threads.
///
/// Thread safety: several threads may call const methods at once, each with a workspace and caches of its own. Over
/// ranks one thread at a time calls them, as the communicators ask.
class Attention {
 public:
  /// Packs the weights. Throws Error where config and weights disagree, or for a variant that this version can't
  /// compute.
  /// With ranks: loads what this one computes, and reads no more of the weights than that.
  [[nodiscard]] static Attention load(const AttentionWeights& weights, const AttentionConfig& config,
                                      const Threads& threads, const Ranks& ranks = Ranks());
  /// One layer of a checkpoint; `config` as AttentionConfig::from gives it, perhaps with other choices.
  [[nodiscard]] static Attention load(const Checkpoint& checkpoint, int64_t layer, const AttentionConfig& config,
                                      const Threads& threads, const Ranks& ranks = Ranks());

  /// The whole layer, over all ranks.
  [[nodiscard]] const AttentionConfig& config() const { return config_; }
  [[nodiscard]] const Ranks& ranks() const { return ranks_; }
  /// This rank's, for decode.
  [[nodiscard]] const QkvProjection& qkv_projection() const;
  [[nodiscard]] const OutputProjection& output_projection() const;
  /// Bytes of this rank's weights.
  [[nodiscard]] int64_t bytes() const;

  /// The sizes and type of a cache that the config asks for: kv_cache_batch_size sequences of max_length tokens, of
  /// attention_dtype.
  [[nodiscard]] KvCacheOptions cache_options() const;
  /// This rank's part of a cache for `options.slots` sequences of `options.capacity` tokens: its KV heads; with data
  /// parallel decode its sequences; with flash decoding its share of their tokens. Throws Error as KvCache does, so
  /// also for a capacity of 0 where the config has no max_length.
  [[nodiscard]] KvCache make_cache(KvStorage storage, const KvCacheOptions& options) const;
  /// The most pages that this rank's part of a paged cache can fill, as KvCache::pages_needed tells.
  [[nodiscard]] int64_t pages_needed(const KvCacheOptions& options) const;
  /// Which of the layer's KV heads a rank's part of a cache has, in its order; -1: a head of zeros.
  [[nodiscard]] std::vector<int64_t> kv_heads_of_rank(int64_t rank) const;
  /// Whether this rank's part of a cache has only some of the sequences, or of their tokens.
  [[nodiscard]] bool shares_sequences() const;
  /// Forgets the tokens of the whole cache's slot from `length` on, as KvCache::truncate does.
  void truncate(KvCache& cache, int64_t slot, int64_t length) const;
  /// Keeps a branch of the whole cache's slot, as KvCache::accept does; all ranks call this.
  void accept(KvCache& cache, int64_t slot, int64_t first_position, std::span<const int64_t> indices) const;
  /// Which of a call's tokens a rank passes as hidden states, and gets back, where sequence_parallel_enabled: their
  /// places among the packed tokens, in the order of the rows that it passes. Spans, cache and masks are those of the
  /// call.
  [[nodiscard]] std::vector<int64_t> tokens_of_rank(int64_t rank, std::span<const Span> spans, const KvCache* cache,
                                                    std::span<const ConstTensorView> active_masks = {}) const;

  /// Throws Error, before the cache changes, for shapes or types that do not fit, spans that do not add up, slots or
  /// positions that the cache can't take; the padded form also for rows longer than a max_context_length that is set
  /// [CFG-75].
  /// Over ranks every rank makes the same call: the same spans, and the same hidden states, or its tokens_of_rank
  /// of them. Log-sum-exps, keys, values and angles are refused then.
  AttentionOutput forward(const AttentionInput& input) const;
  AttentionOutput forward(const PaddedAttentionInput& input) const;

 private:
  friend class AttentionCall;
  friend class Model;
  friend class RankedCall;

  // `forward` to input.output in a step of several layers, whose plan it is; over ranks there is none, and all layers
  // have agreed on the step.
  void run(const AttentionInput& input, StepPlan* plan) const;

  [[nodiscard]] KvCacheOptions own_part(const KvCacheOptions& options) const;
  [[nodiscard]] std::optional<int64_t> own_slot(const KvCache& cache, int64_t slot) const;

  [[nodiscard]] bool spreads_stages_differently() const;

  AttentionConfig config_;
  Ranks ranks_;
  std::optional<RotaryEmbedding> rotary_;
  // What this rank computes in either stage; often the same.
  std::shared_ptr<const AttentionShard> prefill_, decode_;
};

}  // namespace regard

template <>
struct std::tuple_size<regard::AttentionOutput> : std::integral_constant<size_t, 4> {};
template <size_t I>
struct std::tuple_element<I, regard::AttentionOutput> {
  using type = std::remove_reference_t<decltype(regard::get<I>(std::declval<const regard::AttentionOutput&>()))>;
};
