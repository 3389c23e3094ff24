// Gemma 3, text: norms with 1 + w before and after each branch, RMS norms on queries and keys, windows on five of six
// layers, and two rotations.
#include <cmath>

#include "families/family.h"
#include "families/gguf.h"
#include "families/hugging_face.h"

namespace regard {
namespace {

constexpr hugging_face::Defaults kDefaults{
    .family = "gemma3", .context_length = 131072, .rope_theta = 1e6, .tied = true};
constexpr double kLocalBase = 10000.0;
constexpr int64_t kPattern = 6;

// The rotation of layers with windows: its own base, never stretched by the older form of config.json.
RotaryConfig local_rotary(const ConfigReader& config) {
  const double base = config.get<double>("rope_local_base_freq", kLocalBase);
  const ConfigReader parameters = config.object("rope_parameters");
  return hugging_face::rotary_from(config, parameters.object("sliding_attention"), base, kDefaults);
}

// `rope_scaling` stretches the other layers, on top of what rope_parameters say.
RotaryConfig global_rotary(const ConfigReader& config) {
  const double base = config.get<double>("rope_theta", kDefaults.rope_theta);
  const ConfigReader newer = config.object("rope_parameters").object("full_attention");
  const ConfigReader older = config.object("rope_scaling");
  require(newer.empty() || older.empty(), "{}: \"rope_scaling\" and \"rope_parameters\" are both given, expected one",
          config.name());
  return hugging_face::rotary_from(config, older.empty() ? newer : older, base, kDefaults);
}

void set_norms(LayerSpec& layer, const NormSpec& norm) {
  layer.attention_norm = layer.post_attention_norm = layer.mlp_norm = layer.post_mlp_norm = norm;
}

ModelSpec from_config(const ConfigReader& config) {
  ModelSpec model = hugging_face::model_of(config, kDefaults);
  config.ignore({"cache_implementation", "_sliding_window_pattern"});
  model.final_norm.kind = NormKind::rms_plus_one;
  model.embedding.scale = std::sqrt(static_cast<double>(model.hidden_size));
  model.head.soft_cap = config.get<double>("final_logit_softcapping", 0.0);
  AttentionConfig attention = hugging_face::attention_of(config, kDefaults);
  attention.head_dim = config.size_or("head_dim", 256);
  attention.qkv_bias = attention.o_bias = config.get<bool>("attention_bias", false);
  attention.softmax_scale = 1.0 / std::sqrt(static_cast<double>(config.size_or("query_pre_attn_scalar", 256)));
  attention.q_layernorm = attention.k_layernorm =
      QKNorm{.kind = NormKind::rms_plus_one, .eps = *attention.rms_norm_eps};
  const DenseMlp mlp{.width = config.size("intermediate_size"),
                     .activation = hugging_face::activation_of(config, "hidden_activation", "gelu_pytorch_tanh")};
  model.layers = hugging_face::layers_of(config, attention, mlp, model.final_norm);
  const int64_t window = config.size_or("sliding_window", 4096);
  const int64_t pattern = config.size_or("sliding_window_pattern", kPattern);
  const auto types = hugging_face::layer_types_of(config, model.layers.size());
  const RotaryConfig local = local_rotary(config);
  const RotaryConfig global = global_rotary(config);
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const bool is_local = (static_cast<int64_t>(i) + 1) % pattern != 0;
    const std::string type = types.empty() ? is_local ? "sliding_attention" : "full_attention" : types[i];
    AttentionConfig& own = model.layers[i].attention;
    own.sliding_window = hugging_face::window_of(config, type, window, i);
    own.rotary_emb = own.sliding_window > 0 ? local : global;
    set_norms(model.layers[i], model.final_norm);
  }
  return model;
}

TensorNames config_names(const Checkpoint&) {
  TensorNames names = hugging_face_names();
  const std::string& layer = names.layer_pattern;
  names.set("attention.post_norm", named(layer + "post_attention_layernorm"));
  names.set("mlp.norm", named(layer + "pre_feedforward_layernorm"));
  names.set("mlp.post_norm", named(layer + "post_feedforward_layernorm"));
  return names;
}

// Norms of GGUF files have their 1 in the weights. Which layers have windows, their base, and the scale of the
// embedding are not in the files: they follow from the architecture.
ModelSpec from_gguf(const GgufReader& reader) {
  ModelSpec model = gguf::model_of(reader, kDefaults.family);
  model.embedding.scale = std::sqrt(static_cast<double>(model.hidden_size));
  model.head.soft_cap = reader.number("final_logit_softcapping").value_or(0.0);
  const auto mlp = gguf::mlp_of(reader, {.activation = Activation::gelu_tanh}, {});
  const RotaryConfig global = gguf::rotary_of(reader, kDefaults.rope_theta);
  const RotaryConfig local{.rope_theta = reader.number("rope.freq_base_swa").value_or(kLocalBase)};
  const int64_t window = gguf::sliding_window_of(reader);
  const int64_t pattern = reader.integer("attention.sliding_window_pattern").value_or(kPattern);
  int64_t index = 0;
  for (AttentionConfig& attention : gguf::attentions_of(reader)) {
    const bool is_local = window > 0 && ++index % pattern != 0;
    attention.sliding_window = is_local ? window : 0;
    attention.rotary_emb = is_local ? local : global;
    attention.q_layernorm = attention.k_layernorm = QKNorm{.eps = *attention.rms_norm_eps};
    LayerSpec& layer = model.layers.emplace_back(LayerSpec{.attention = attention, .mlp = mlp});
    set_norms(layer, model.final_norm);
  }
  return model;
}

TensorNames names_of_gguf(const Checkpoint&) { return gguf_names(); }

}  // namespace

const Family kGemma3{.name = "gemma3",
                     .model_type = "gemma3_text",
                     .from_config = from_config,
                     .config_names = config_names,
                     .architecture = "gemma3",
                     .from_gguf = from_gguf,
                     .gguf_names = names_of_gguf};

}  // namespace regard
