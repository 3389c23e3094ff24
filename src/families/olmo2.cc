// OLMo 2: norms after each branch instead of before, and RMS norms over all heads of queries and of keys.
#include "families/family.h"
#include "families/gguf.h"
#include "families/hugging_face.h"

namespace regard {
namespace {

constexpr hugging_face::Defaults kDefaults{.family = "olmo2", .rms_norm_eps = 1e-5};

QKNorm norm_of(const AttentionConfig& attention) { return {.width = NormWidth::all, .eps = *attention.rms_norm_eps}; }

LayerSpec layer_of(const AttentionConfig& attention, const std::variant<DenseMlp, ExpertsMlp>& mlp,
                   const NormSpec& norm) {
  LayerSpec layer{.attention = attention, .mlp = mlp};
  layer.post_attention_norm = layer.post_mlp_norm = norm;
  return layer;
}

ModelSpec from_config(const ConfigReader& config) {
  ModelSpec model = hugging_face::model_of(config, kDefaults);
  AttentionConfig attention = hugging_face::attention_of(config, kDefaults);
  attention.qkv_bias = attention.o_bias = config.get<bool>("attention_bias", false);
  attention.rotary_emb = hugging_face::rotary_of(config, kDefaults);
  attention.q_layernorm = attention.k_layernorm = norm_of(attention);
  const DenseMlp mlp{.width = config.size("intermediate_size"),
                     .activation = hugging_face::activation_of(config, "hidden_act", "silu")};
  model.layers.assign(static_cast<size_t>(config.size("num_hidden_layers", kMostLayers)),
                      layer_of(attention, mlp, model.final_norm));
  return model;
}

TensorNames config_names(const Checkpoint&) {
  TensorNames names = hugging_face_names();
  names.set("attention.post_norm", named(names.layer_pattern + "post_attention_layernorm"));
  names.set("mlp.post_norm", named(names.layer_pattern + "post_feedforward_layernorm"));
  return names;
}

ModelSpec from_gguf(const GgufReader& reader) {
  ModelSpec model = gguf::model_of(reader, kDefaults.family);
  const auto mlp = gguf::mlp_of(reader, {}, {});
  for (AttentionConfig& attention : gguf::attentions_of(reader)) {
    attention.rotary_emb = gguf::rotary_of(reader);
    attention.q_layernorm = attention.k_layernorm = norm_of(attention);
    model.layers.push_back(layer_of(attention, mlp, model.final_norm));
  }
  return model;
}

TensorNames names_of_gguf(const Checkpoint&) { return gguf_names(); }

}  // namespace

const Family kOlmo2{.name = "olmo2",
                    .model_type = "olmo2",
                    .from_config = from_config,
                    .config_names = config_names,
                    .architecture = "olmo2",
                    .from_gguf = from_gguf,
                    .gguf_names = names_of_gguf};

}  // namespace regard
