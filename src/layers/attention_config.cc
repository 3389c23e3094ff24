#include "regard/attention_config.h"

#include <cmath>

#include "regard/cache.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Sizes beyond this are a damaged file, not a model; it also keeps every product of two sizes inside int64.
constexpr int64_t kMaxSize = int64_t{1} << 24;

void require_size(const char* name, int64_t value) {
  require(value >= 1 && value <= kMaxSize, "attention: {} is {}, expected 1 to {}", name, value, kMaxSize);
}

void require_optional_size(const char* name, int64_t value) {
  require(value >= 0, "attention: {} is {}, expected 1 or more, or 0 for none", name, value);
}

void require_positive(const char* name, double value) {
  require(std::isfinite(value) && value > 0, "attention: {} is {}, expected a positive number", name, value);
}

void check_longrope(RotaryConfig& rotary) {
  const auto expected = static_cast<size_t>(rotary.rotary_dim / 2);
  for (const auto& [name, factors] :
       {std::pair{"short_factor", &rotary.short_factor}, {"long_factor", &rotary.long_factor}}) {
    require(factors->size() == expected, "attention: rotary_emb.{} has {} numbers, expected {} (half of rotary_dim)",
            name, factors->size(), expected);
    for (const double factor : *factors) require_positive("rotary_emb.short_factor or long_factor", factor);
  }
  if (rotary.longrope_factors != LongropeFactors::unspecified) return;
  require(rotary.short_factor == rotary.long_factor,
          "attention: rotary_emb.longrope_factors is unspecified, expected short_factor or long_factor, as the lists "
          "differ; rotary_emb.longrope_factors_for(length) gives the one for sequences of up to that length");
  rotary.longrope_factors = LongropeFactors::short_factor;
}

void validate(RotaryConfig& rotary, int64_t head_dim) {
  if (rotary.rotary_dim == 0) rotary.rotary_dim = head_dim;
  require(rotary.rotary_dim >= 2 && rotary.rotary_dim % 2 == 0 && rotary.rotary_dim <= head_dim,
          "attention: rotary_emb.rotary_dim is {}, expected an even number from 2 to head_dim ({})", rotary.rotary_dim,
          head_dim);
  require_positive("rotary_emb.rope_theta", rotary.rope_theta);
  require_positive("rotary_emb.factor", rotary.factor);
  require_positive("rotary_emb.low_freq_factor", rotary.low_freq_factor);
  require_positive("rotary_emb.high_freq_factor", rotary.high_freq_factor);
  require_positive("rotary_emb.beta_fast", rotary.beta_fast);
  require_positive("rotary_emb.beta_slow", rotary.beta_slow);
  if (rotary.attention_factor) require_positive("rotary_emb.attention_factor", *rotary.attention_factor);
  require(rotary.original_max_position_embeddings >= 1,
          "attention: rotary_emb.original_max_position_embeddings is {}, expected 1 or more",
          rotary.original_max_position_embeddings);
  require(rotary.scaling != RopeScaling::llama3 || rotary.high_freq_factor > rotary.low_freq_factor,
          "attention: rotary_emb.high_freq_factor is {}, expected more than low_freq_factor ({})",
          rotary.high_freq_factor, rotary.low_freq_factor);
  if (rotary.scaling == RopeScaling::longrope) check_longrope(rotary);
}

void validate(const char* name, const std::optional<QKNorm>& norm) {
  if (!norm) return;
  require(std::isfinite(norm->eps) && norm->eps >= 0, "attention: {}.eps is {}, expected 0 or more", name, norm->eps);
  require(!norm->weight_per_head || (norm->has_weight && norm->width == NormWidth::head),
          "attention: {}.weight_per_head is true, expected false for a norm without weight or over all heads", name);
}

void validate(InferenceConfig& inference) {
  require_size("batch_size", inference.batch_size);
  const auto fill = [](const char* name, int64_t& value, int64_t fallback) {
    if (value == 0) value = fallback;
    if (value != 0) require_size(name, value);
  };
  fill("kv_cache_batch_size", inference.kv_cache_batch_size, inference.batch_size);
  fill("seq_len", inference.seq_len, 0);
  fill("max_length", inference.max_length, inference.seq_len);
  fill("max_context_length", inference.max_context_length, inference.seq_len);
  require(inference.max_length == 0 || inference.max_context_length <= inference.max_length,
          "attention: max_context_length is {}, expected at most max_length ({})", inference.max_context_length,
          inference.max_length);
  require_optional_size("windowed_context_encoding_size", inference.windowed_context_encoding_size);
  const auto require_work_type = [](const char* name, DType dtype) {
    require(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16,
            "attention: {} is {}, expected f32, bf16 or f16", name, name_of(dtype));
  };
  require_work_type("torch_dtype", inference.torch_dtype);
  if (!inference.attention_dtype) inference.attention_dtype = inference.torch_dtype;
  require_work_type("attention_dtype", *inference.attention_dtype);
}

void check_heads(AttentionConfig& config) {
  require_size("hidden_size", config.hidden_size);
  require_size("num_attention_heads", config.num_attention_heads);
  require_size("num_key_value_heads", config.num_key_value_heads);
  require(config.num_attention_heads % config.num_key_value_heads == 0,
          "attention: num_key_value_heads is {}, expected a divisor of num_attention_heads ({})",
          config.num_key_value_heads, config.num_attention_heads);
  if (config.head_dim == 0) {
    require(config.hidden_size % config.num_attention_heads == 0,
            "attention: num_attention_heads is {}, expected a divisor of hidden_size ({}) where head_dim is not given",
            config.num_attention_heads, config.hidden_size);
    config.head_dim = config.hidden_size / config.num_attention_heads;
  }
  require_size("head_dim", config.head_dim);
  if (config.v_head_dim == 0) config.v_head_dim = config.head_dim;
  require_size("v_head_dim", config.v_head_dim);
}

void check_norms(AttentionConfig& config) {
  if (config.rms_norm_eps)
    require(std::isfinite(*config.rms_norm_eps) && *config.rms_norm_eps >= 0,
            "attention: rms_norm_eps is {}, expected 0 or more", *config.rms_norm_eps);
  if (config.qk_layernorm && !config.q_layernorm && !config.k_layernorm)
    config.q_layernorm = config.k_layernorm = QKNorm{.kind = NormKind::layer_norm, .eps = 1e-5};
  require(config.q_layernorm.has_value() == config.k_layernorm.has_value(),
          "attention: {} is given without {}, expected both or none",
          config.q_layernorm ? "q_layernorm" : "k_layernorm", config.q_layernorm ? "k_layernorm" : "q_layernorm");
  validate("q_layernorm", config.q_layernorm);
  validate("k_layernorm", config.k_layernorm);
  validate("v_norm", config.v_norm);
}

void check_scores(AttentionConfig& config) {
  if (config.softmax_scale == 0) config.softmax_scale = 1.0 / std::sqrt(static_cast<double>(config.head_dim));
  require_positive("softmax_scale", config.softmax_scale);
  require(std::isfinite(config.logit_soft_cap) && config.logit_soft_cap >= 0,
          "attention: logit_soft_cap is {}, expected 0 (off) or a positive number", config.logit_soft_cap);
  if (config.clip_qkv)
    require(*config.clip_qkv >= 0, "attention: clip_qkv is {}, expected 0 or more", *config.clip_qkv);
  if (config.query_position_scale) {
    require_positive("query_position_scale.floor_scale", config.query_position_scale->floor_scale);
    require(std::isfinite(config.query_position_scale->attn_scale),
            "attention: query_position_scale.attn_scale is {}, expected a number",
            config.query_position_scale->attn_scale);
    require(config.query_position_scale->offset >= 0 && config.query_position_scale->offset <= kMaxSize,
            "attention: query_position_scale.offset is {}, expected 0 to {}", config.query_position_scale->offset,
            kMaxSize);
  }
  require(std::isfinite(config.value_scale), "attention: value_scale is {}, expected a number", config.value_scale);
}

void check_mask(const AttentionConfig& config) {
  require_optional_size("sliding_window", config.sliding_window);
  require_optional_size("attention_chunk_size", config.attention_chunk_size);
  require(config.learned_sinks_size >= 0 && config.learned_sinks_size <= 1024,
          "attention: learned_sinks_size is {}, expected 0 (none) to 1024", config.learned_sinks_size);
  require(!config.o_proj_layer_name.empty(), "attention: o_proj_layer_name is empty, expected a name");
}

}  // namespace

AttentionConfig AttentionConfig::validated() const {
  AttentionConfig config = *this;
  check_heads(config);
  if (config.rotary_emb) validate(*config.rotary_emb, config.head_dim);
  check_norms(config);
  check_scores(config);
  check_mask(config);
  validate(config.inference);
  return config;
}

AttentionConfig::operator KvSpec() const {
  const AttentionConfig config = validated();
  return {.num_key_value_heads = config.num_key_value_heads,
          .head_dim = config.head_dim,
          .v_head_dim = config.v_head_dim,
          .mask = Mask::of(config)};
}

}  // namespace regard
