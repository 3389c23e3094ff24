#include "families/gguf.h"

#include <cmath>

#include "checkpoint/read_tensor.h"
#include "families/config_reader.h"
#include "tensor/fail.h"

namespace regard::gguf {
namespace {

std::string layer_tensor(int64_t layer, std::string_view name) { return fmt::format("blk.{}.{}", layer, name); }

void ignore_what_does_not_matter(const GgufReader& reader) {
  reader.ignore({"vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "use_parallel_residual"});
}

// What cos and sin are multiplied by: llama.cpp's own factor times YaRN's.
double attention_factor_of(const GgufReader& reader, const RotaryConfig& rotary) {
  const double own = reader.number("rope.scaling.attn_factor").value_or(1.0);
  const bool stretched = rotary.scaling == RopeScaling::yarn && rotary.factor > 1.0;
  return own * (stretched ? 0.1 * std::log(rotary.factor) + 1.0 : 1.0);
}

std::vector<double> numbers_of(const GgufReader& reader, const std::string& tensor) {
  const auto values = read_vector(reader.checkpoint(), tensor);
  return {values.begin(), values.end()};
}

}  // namespace

ModelSpec model_of(const GgufReader& reader, std::string_view family) {
  ignore_what_does_not_matter(reader);
  const StoredTensor& embedding = reader.checkpoint().tensor("token_embd.weight");
  require(embedding.shape.rank() == 2, "checkpoint: tensor \"token_embd.weight\" has shape {}, expected two axes",
          embedding.shape);
  double bytes = 0;
  double weights = 0;
  for (const StoredTensor& tensor : reader.checkpoint().tensors()) {
    bytes += static_cast<double>(tensor.bytes.size());
    weights += static_cast<double>(tensor.shape.elements());
  }
  const double mean = bytes / std::max(1.0, weights);
  require(embedding.shape[0] >= 1 && embedding.shape[0] <= kMostSize,
          "checkpoint: {}: the vocabulary has {} tokens, expected 1 to {}", reader.checkpoint().path().string(),
          embedding.shape[0], kMostSize);
  return {.family = std::string(family),
          .vocab_size = embedding.shape[0],
          .hidden_size = reader.size("embedding_length", kMostSize),
          .context_length = reader.size("context_length", kMostSize),
          .embedding = {},
          .layers = {},
          .final_norm = {.eps = reader.eps("attention.layer_norm_rms_epsilon", 1e-5)},
          .head = {.tied = !reader.has_tensor("output.weight")},
          .bytes_per_weight = {.attention = mean, .mlp = mean, .embedding = mean}};
}

std::vector<AttentionConfig> attentions_of(const GgufReader& reader) {
  const int64_t layers = reader.size("block_count", kMostLayers);
  AttentionConfig same;
  same.hidden_size = reader.size("embedding_length", kMostSize);
  same.head_dim = reader.integer("attention.key_length").value_or(0);
  same.v_head_dim = reader.integer("attention.value_length").value_or(0);
  same.rms_norm_eps = reader.eps("attention.layer_norm_rms_epsilon", 1e-5);
  same.is_causal = reader.boolean("attention.causal").value_or(true);
  same.softmax_scale = reader.number("attention.scale").value_or(0.0);
  same.inference.seq_len = reader.size("context_length", kMostSize);
  same.inference.torch_dtype = DType::f32;
  require(reader.has("attention.head_count"), "checkpoint: {} has no key \"{}.attention.head_count\"",
          reader.checkpoint().path().string(), reader.architecture());
  const auto heads = reader.integers_by_layer("attention.head_count", layers, 0);
  const auto kv_heads = reader.integers_by_layer("attention.head_count_kv", layers, 0);
  std::vector<AttentionConfig> all;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    AttentionConfig& config = all.emplace_back(same);
    config.num_attention_heads = heads[index];
    config.num_key_value_heads = kv_heads[index] == 0 ? heads[index] : kv_heads[index];
    config.qkv_bias = reader.has_tensor(layer_tensor(layer, "attn_q.bias"));
    config.o_bias = reader.has_tensor(layer_tensor(layer, "attn_output.bias"));
  }
  return all;
}

RotaryConfig rotary_of(const GgufReader& reader, double default_base) {
  RotaryConfig rotary;
  rotary.rotary_dim = reader.integer("rope.dimension_count").value_or(0);
  rotary.rope_theta = reader.number("rope.freq_base").value_or(default_base);
  rotary.factor = reader.number("rope.scaling.factor").value_or(1.0);
  rotary.original_max_position_embeddings =
      reader.integer("rope.scaling.original_context_length").value_or(reader.size("context_length", kMostSize));
  const std::string scaling = reader.text("rope.scaling.type").value_or("none");
  if (scaling == "linear") {
    rotary.scaling = RopeScaling::linear;
  } else if (scaling == "yarn") {
    rotary.scaling = RopeScaling::yarn;
    rotary.beta_fast = reader.number("rope.scaling.yarn_beta_fast").value_or(32.0);
    rotary.beta_slow = reader.number("rope.scaling.yarn_beta_slow").value_or(1.0);
  } else {
    require(scaling == "none" || scaling == "longrope",
            "checkpoint: {}: {}.rope.scaling.type is \"{}\", expected none, linear, yarn or longrope",
            reader.checkpoint().path().string(), reader.architecture(), printable(scaling));
  }
  rotary.attention_factor = attention_factor_of(reader, rotary);
  // Llama 3's frequencies come as one divisor a pair.
  const bool divided = reader.has_tensor("rope_freqs.weight");
  if (divided || reader.has_tensor("rope_factors_long.weight")) {
    rotary.scaling = RopeScaling::longrope;
    rotary.short_factor = numbers_of(reader, divided ? "rope_freqs.weight" : "rope_factors_short.weight");
    rotary.long_factor = numbers_of(reader, divided ? "rope_freqs.weight" : "rope_factors_long.weight");
    rotary.longrope_factors = rotary.longrope_factors_for(reader.size("context_length", kMostSize));
  }
  return rotary;
}

std::variant<DenseMlp, ExpertsMlp> mlp_of(const GgufReader& reader, const DenseMlp& kind, const RouterSpec& router) {
  const int64_t experts = reader.integer("expert_count").value_or(0);
  DenseMlp mlp = kind;
  if (experts == 0) {
    mlp.width = reader.size("feed_forward_length", kMostSize);
    mlp.has_bias = reader.has_tensor("blk.0.ffn_gate.bias");
    return mlp;
  }
  // Some architectures name the width of an expert apart; then the other one is not used.
  reader.ignore({"feed_forward_length"});
  const bool apart = reader.integer("expert_feed_forward_length").value_or(0) > 0;
  mlp.width = reader.size(apart ? "expert_feed_forward_length" : "feed_forward_length", kMostSize);
  mlp.has_bias = reader.has_tensor("blk.0.ffn_gate_exps.bias");
  RouterSpec scored = router;
  scored.has_bias = reader.has_tensor("blk.0.ffn_gate_inp.bias");
  return ExpertsMlp{.experts = reader.size("expert_count", kMostExperts),
                    .experts_per_token = reader.size("expert_used_count", experts),
                    .expert = mlp,
                    .router = scored,
                    .shared = std::nullopt};
}

std::vector<LayerSpec> layers_of(const GgufReader& reader, const NormSpec& norm) {
  const auto mlp = mlp_of(reader, {}, {});
  std::vector<LayerSpec> layers;
  for (AttentionConfig& attention : attentions_of(reader)) {
    attention.rotary_emb = rotary_of(reader);
    attention.sliding_window = sliding_window_of(reader);
    LayerSpec& layer = layers.emplace_back(LayerSpec{.attention = attention, .mlp = mlp});
    layer.attention_norm = layer.mlp_norm = norm;
  }
  return layers;
}

int64_t sliding_window_of(const GgufReader& reader) { return reader.integer("attention.sliding_window").value_or(0); }

}  // namespace regard::gguf
