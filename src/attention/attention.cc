#include "regard/attention.h"

#include <algorithm>
#include <cmath>

#include "tensor/fail.h"

namespace regard {
namespace {

void check_vector(const char* name, const std::vector<float>& values, int64_t expected, bool required) {
  if (values.empty() && !required) return;
  require(static_cast<int64_t>(values.size()) == expected, "attention: {} has {} numbers, expected {}", name,
          values.size(), expected);
  for (const float value : values) require(!std::isnan(value), "attention: {} holds NaN", name);
}

void check_norm(const char* name, const std::optional<QKNorm>& norm, const std::vector<float>& weight,
                const std::vector<float>& bias, int64_t heads, int64_t width) {
  if (!norm) {
    require(weight.empty() && bias.empty(), "attention: weights of {} are given, but the config has no such norm",
            name);
    return;
  }
  require(norm->has_weight || weight.empty(), "attention: weights of {} are given, but its has_weight is false", name);
  require(norm->kind == NormKind::layer_norm || bias.empty(),
          "attention: a bias of {} is given, but only a layer_norm has one", name);
  const int64_t expected = norm->width == NormWidth::all ? heads * width : width;
  check_vector(name, weight, expected, norm->has_weight);
  check_vector(name, bias, expected, false);
}

// Several sinks of a head are one whose exp is the sum of theirs [GAP-6].
std::vector<float> fold_sinks(const std::vector<float>& sinks, int64_t heads, int64_t size) {
  if (size <= 1) return sinks;
  std::vector<float> folded(static_cast<size_t>(heads));
  for (int64_t head = 0; head < heads; ++head) {
    const auto* first = sinks.data() + head * size;
    const float largest = *std::max_element(first, first + size);
    if (std::isinf(largest)) {  // sinks of -inf are none
      folded[static_cast<size_t>(head)] = largest;
      continue;
    }
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += std::exp(static_cast<double>(first[i]) - largest);
    folded[static_cast<size_t>(head)] = static_cast<float>(largest + std::log(sum));
  }
  return folded;
}

void refuse_what_is_not_computed(const AttentionConfig& config) {
  require(!config.output_gate, "attention: output_gate is true, but gated outputs are not computed yet");
  require(config.value_source == ValueSource::v_proj,
          "attention: value_source is k_proj, but shared keys and values are not computed yet");
  require(!config.kv_source_layer,
          "attention: kv_source_layer is {}, but keys and values of other layers are not read yet",
          config.kv_source_layer.value_or(0));
}

}  // namespace

Attention Attention::load(const AttentionWeights& weights, const AttentionConfig& config, const Threads& threads) {
  Attention attention;
  attention.config_ = config.validated();
  const AttentionConfig& c = attention.config_;
  refuse_what_is_not_computed(c);
  check_norm("q_layernorm", c.q_layernorm, weights.q_norm, weights.q_norm_bias, c.num_attention_heads, c.head_dim);
  check_norm("k_layernorm", c.k_layernorm, weights.k_norm, weights.k_norm_bias, c.num_key_value_heads, c.head_dim);
  check_norm("v_norm", c.v_norm, weights.v_norm, {}, c.num_key_value_heads, c.v_head_dim);
  check_vector("sinks", weights.sinks, c.num_attention_heads * c.learned_sinks_size, true);
  attention.qkv_ = QkvProjection::load(weights.qkv, c, threads);
  attention.output_ = OutputProjection::load(weights.output, weights.output_bias, c, threads);
  if (c.rotary_emb) attention.rotary_.emplace(*c.rotary_emb, c.inference.max_length);
  attention.norms_ = {.q = weights.q_norm,
                      .q_bias = weights.q_norm_bias,
                      .k = weights.k_norm,
                      .k_bias = weights.k_norm_bias,
                      .v = weights.v_norm};
  attention.sinks_ = fold_sinks(weights.sinks, c.num_attention_heads, c.learned_sinks_size);
  return attention;
}

AttentionOutput::Field AttentionOutput::operator[](int index) const {
  require(index >= -6 && index < 6, "attention output: index is {}, expected -6 to 5", index);
  switch (index < 0 ? index + 6 : index) {
    case 0:
      return hidden_states;
    case 1:
      return present_key_value;
    case 2:
      return cos_cache;
    case 3:
      return sin_cache;
    case 4:
      return residual;
    default:
      return attn_input_hidden_states;
  }
}

}  // namespace regard
