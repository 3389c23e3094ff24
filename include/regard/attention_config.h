#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "regard/dtype.h"

namespace regard {

class Checkpoint;
struct KvSpec;

/// Which elements of a head are rotated together.
enum class RotaryStyle : uint8_t {
  half,         ///< element i with element i + rotary_dim/2 (Hugging Face's order) [POS-4]
  interleaved,  ///< element 2i with element 2i + 1 (the "polar" form) [POS-9]
};

/// How the rotation's frequencies are stretched for contexts longer than those of the training.
enum class RopeScaling : uint8_t {
  none,
  linear,    ///< all frequencies divided by `factor` [POS-5]
  llama3,    ///< low frequencies divided by `factor`, high ones kept, a blend between [POS-6]
  yarn,      ///< a ramp between both over the dimensions; cos and sin times an attention factor [POS-7]
  longrope,  ///< each frequency divided by its own factor, of the list that `longrope_factors` names
};

/// Which list of factors a longrope rotation divides by. The choice belongs to the layer: a token's rotation never
/// depends on the length of its sequence, or of others in the batch.
enum class LongropeFactors : uint8_t {
  unspecified,  ///< Error where the two lists differ
  short_factor,
  long_factor,
};

/// Rotary position embedding. Angles are computed in double precision.
struct RotaryConfig {
  RotaryStyle style = RotaryStyle::half;
  int64_t rotary_dim = 0;       ///< Elements of each head that rotate, from the first on; even. 0: all of head_dim.
  double rope_theta = 10000.0;  ///< Base of the frequencies rope_theta^(-2i/rotary_dim) [POS-3].

  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;
  double low_freq_factor = 1.0;                     ///< llama3
  double high_freq_factor = 4.0;                    ///< llama3
  int64_t original_max_position_embeddings = 8192;  ///< llama3, yarn, longrope: the length of the training
  double beta_fast = 32.0;                          ///< yarn
  double beta_slow = 1.0;                           ///< yarn
  bool truncate = true;                             ///< yarn: the ramp's ends are rounded outwards to dimensions
  std::optional<double> attention_factor;  ///< Times cos and sin; 1, but for yarn 0.1 ln(factor) + 1, and for longrope
                                           ///< sqrt(1 + ln(factor) / ln(original_max_position_embeddings))
  std::vector<double> short_factor;        ///< longrope: rotary_dim/2 numbers
  std::vector<double> long_factor;         ///< longrope: rotary_dim/2 numbers
  LongropeFactors longrope_factors = LongropeFactors::unspecified;  ///< longrope: required where the lists differ

  /// The list for sequences of up to `length` tokens: the long one beyond original_max_position_embeddings.
  [[nodiscard]] LongropeFactors longrope_factors_for(int64_t length) const {
    return length > original_max_position_embeddings ? LongropeFactors::long_factor : LongropeFactors::short_factor;
  }

  friend bool operator==(const RotaryConfig&, const RotaryConfig&) = default;
};

/// The forms of normalisation that models apply to queries and keys.
enum class NormKind : uint8_t {
  rms,           ///< x / sqrt(mean(x^2) + eps) * weight; without a weight: no gain (Llama 4's "L2 norm") [POS-12]
  rms_plus_one,  ///< x / sqrt(mean(x^2) + eps) * (1 + weight) (Gemma)
  layer_norm,    ///< (x - mean) / sqrt(variance + eps) * weight + bias [POS-23]
};

/// The elements one statistic is taken over.
enum class NormWidth : uint8_t {
  head,  ///< each head by itself
  all,   ///< all heads of the projection together (OLMo 2)
};

/// Before or after the rotation [CFG-9].
enum class QKNormPlacement : uint8_t { PRE_ROPE = 0, POST_ROPE = 1 };

/// A norm on query or key heads; its gain and bias, if any, are weights of the layer.
struct QKNorm {
  NormKind kind = NormKind::rms;
  NormWidth width = NormWidth::head;
  double eps = 1e-6;
  bool has_weight = true;
  bool weight_per_head = false;  ///< Width `head`: gain and bias are [heads, head_dim], each head's own (Cohere's
                                 ///< Command R+, StableLM 2); false: [head_dim], the same for all heads.

  friend bool operator==(const QKNorm&, const QKNorm&) = default;
};

/// Queries grow with their position p by log(1 + floor((p + offset) / floor_scale)) * attn_scale + 1, after norms and
/// rotation.
struct QueryPositionScale {
  double floor_scale = 8192.0;
  double attn_scale = 0.1;
  int64_t offset = 1;  ///< 1: Llama 4's layers without rotation; 0: Ministral 3's layers. 0 or more.

  friend bool operator==(const QueryPositionScale&, const QueryPositionScale&) = default;
};

/// The flags of the reference's inference config that a single rank needs: lengths, batch, types.
/// A 0 stands for the default that the comment gives. Lengths have none: where neither the length itself nor seq_len is
/// set, they stay 0, and a cache needs the capacity in its own options.
struct InferenceConfig {
  int64_t batch_size = 1;           ///< Rows a call [CFG-40].
  int64_t kv_cache_batch_size = 0;  ///< Sequence slots of the cache; batch_size [CFG-59].
  int64_t seq_len = 0;              ///< Default of the lengths below [CFG-42].
  int64_t max_context_length = 0;   ///< Longest row of a padded call; seq_len, or else no limit [CFG-43].
  int64_t max_length = 0;           ///< Default capacity of a cache slot, in tokens; seq_len [CFG-44].
  int64_t windowed_context_encoding_size =
      0;                                 ///< Prefill in pieces of so many tokens; 0: the library's choice [CFG-68].
  DType torch_dtype = DType::f32;        ///< Type of the model: f32, bf16 or f16 [CFG-47].
  std::optional<DType> attention_dtype;  ///< Type of the cache; torch_dtype [CFG-48], [KV-5].
  bool allow_input_truncation = false;   ///< A prompt longer than max_context_length loses its tail [CFG-75].

  friend bool operator==(const InferenceConfig&, const InferenceConfig&) = default;
};

/// One attention layer. Names and defaults are the reference's (NeuronAttentionBase); where a meaning differs, the
/// comment says so. `validated()` fills the derived defaults and checks every constraint.
struct AttentionConfig {
  int64_t hidden_size = 0;          ///< Width of the residual stream [CFG-1].
  int64_t num_attention_heads = 0;  ///< Query heads [CFG-2].
  int64_t num_key_value_heads = 0;  ///< KV heads of this layer; divides num_attention_heads [CFG-3].
  int64_t head_dim = 0;             ///< Width of a query and key head; 0: hidden_size / num_attention_heads [CFG-4].
  int64_t v_head_dim = 0;           ///< Width of a value head; 0: head_dim.
  bool is_eagle3_draft = false;     ///< The input of the QKV projection is twice as wide as hidden_size [CFG-1].

  std::optional<RotaryConfig> rotary_emb;  ///< None: no rotation [CFG-5], [POS-11].

  std::optional<double>
      rms_norm_eps;          ///< Of the fused input norm and of use_qk_norm, which takes 1e-6 without it [CFG-7].
  bool use_qk_norm = false;  ///< One RMS norm without gain on queries and keys, per head [CFG-8], [GAP-11].
  QKNormPlacement qk_norm_placement =
      QKNormPlacement::PRE_ROPE;      ///< Of all norms on queries and keys [CFG-9], [GAP-12].
  std::optional<QKNorm> q_layernorm;  ///< Norm of the query heads; both or none [CFG-10].
  std::optional<QKNorm> k_layernorm;  ///< Norm of the key heads; both or none [CFG-10].
  bool qk_layernorm = false;          ///< Short for a LayerNorm over head_dim, eps 1e-5, as both [CFG-56], [POS-23].
  std::optional<QKNorm> v_norm;       ///< Norm of the value heads (Gemma 4).

  std::optional<float> clip_qkv;  ///< Clamp q, k, v to [-c, c] after the bias; c >= 0 [CFG-12], [POS-20].
  bool fused_qkv = false;         ///< The checkpoint holds one Wqkv, rows q, k, v [CFG-55], [PROJ-25].
  bool qkv_bias = false;          ///< [CFG-13]
  bool o_bias = false;            ///< [CFG-13]
  std::string o_proj_layer_name =
      "o_proj";  ///< What messages call the output projection [CFG-22]; families know its tensor.

  double softmax_scale = 0.0;   ///< Multiplies the scores; 0: 1/sqrt(head_dim). The reference's divides [CFG-14].
  double logit_soft_cap = 0.0;  ///< 0: off; otherwise scores become cap * tanh(score / cap).
  std::optional<QueryPositionScale> query_position_scale;
  double value_scale = 1.0;  ///< Multiplies the values (MiMo-V2).

  bool is_causal = true;  ///< False: every token sees all of its sequence [MASK-6], as far as window and chunk allow.
  /// Tokens a query sees, itself included; 0: all [CFG-20], [MASK-3]. Where is_causal is false: sliding_window / 2 on
  /// either side, and itself, as ModernBERT's local_attention [MASK-25].
  int64_t sliding_window = 0;
  int64_t attention_chunk_size =
      0;  ///< Tokens see only their own chunk; 0: off. With a window: both apply [CFG-17], [GAP-27].
  int64_t learned_sinks_size = 0;  ///< Sink logits per query head; 0: none [CFG-23], [GAP-6].

  InferenceConfig inference;

  friend bool operator==(const AttentionConfig&, const AttentionConfig&) = default;

  /// Query heads that share one KV head.
  [[nodiscard]] int64_t group_size() const { return num_attention_heads / num_key_value_heads; }
  /// Width of the QKV projection's input.
  [[nodiscard]] int64_t input_size() const { return is_eagle3_draft ? 2 * hidden_size : hidden_size; }

  /// A copy with every default filled in. Throws Error, naming parameter, value and expectation, for the first
  /// constraint that does not hold.
  [[nodiscard]] AttentionConfig validated() const;

  /// What a cache of this layer has to know. Throws Error as `validated` does.
  operator KvSpec() const;  // NOLINT(google-explicit-constructor): KvCache::paged(options, config)

  /// The attention of one layer of a checkpoint. Throws Error for a layer that is not there, a model family that is not
  /// known, or metadata that makes no sense.
  [[nodiscard]] static AttentionConfig from(const Checkpoint& checkpoint, int64_t layer);
};

}  // namespace regard
