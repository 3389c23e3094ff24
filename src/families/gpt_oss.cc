// gpt-oss: learned sinks, windows on every other layer, experts with biases and a clamped SwiGLU.
#include "families/family.h"
#include "families/gguf.h"
#include "families/hugging_face.h"

namespace regard {
namespace {

constexpr hugging_face::Defaults kDefaults{
    .family = "gpt_oss", .context_length = 131072, .rms_norm_eps = 1e-5, .rope_theta = 150000.0};
// MXFP4 stores blocks of 32 numbers of 4 bits and one scale of 8.
constexpr double kMxfp4Bytes = (32 * 4 + 8) / 32.0 / 8;
constexpr RouterSpec kRouter{.scores = RouterScores::top_k_then_softmax, .normalized = false, .has_bias = true};

// The rotation that a config without one stands for.
RotaryConfig default_rotary() {
  return {.rope_theta = kDefaults.rope_theta,
          .scaling = RopeScaling::yarn,
          .factor = 32.0,
          .original_max_position_embeddings = 4096,
          .truncate = false};
}

void read_quantization(const ConfigReader& config, ModelSpec& model) {
  const ConfigReader quantization = config.object("quantization_config");
  if (quantization.empty()) return;
  const auto method = quantization.get<std::string>("quant_method", "");
  require(method == "mxfp4", "{}: \"quant_method\" is \"{}\", expected \"mxfp4\"", quantization.name(),
          printable(method));
  // All but the experts stay as they are.
  quantization.ignore({"modules_to_not_convert", "dequantize"});
  model.bytes_per_weight.mlp = kMxfp4Bytes;
}

ModelSpec from_config(const ConfigReader& config) {
  ModelSpec model = hugging_face::model_of(config, kDefaults);
  config.ignore({"experts_per_token", "initial_context_length", "num_experts"});
  read_quantization(config, model);
  AttentionConfig attention = hugging_face::attention_of(config, kDefaults);
  attention.head_dim = config.size_or("head_dim", 64);
  if (!config.contains("num_key_value_heads")) attention.num_key_value_heads = 8;
  attention.qkv_bias = attention.o_bias = config.get<bool>("attention_bias", true);
  attention.learned_sinks_size = 1;
  const bool has_rotary = config.has("rope_parameters") || config.has("rope_scaling");
  attention.rotary_emb = has_rotary ? hugging_face::rotary_of(config, kDefaults) : default_rotary();
  const DenseMlp expert{.width = config.size("intermediate_size"),
                        .activation = Activation::clamped_silu,
                        .has_bias = true,
                        .alpha = config.get<double>("swiglu_alpha", 1.702),
                        .limit = config.get<double>("swiglu_limit", 7.0)};
  const auto activation = config.get<std::string>("hidden_act", "silu");
  require(activation == "silu", "{}: \"hidden_act\" is \"{}\", expected \"silu\"", config.name(),
          printable(activation));
  const int64_t experts = config.size("num_local_experts", kMostExperts);
  const ExpertsMlp mlp{.experts = experts,
                       .experts_per_token = config.size_or("num_experts_per_tok", 4, experts),
                       .expert = expert,
                       .router = kRouter,
                       .shared = std::nullopt};
  model.layers = hugging_face::layers_of(config, attention, mlp, model.final_norm);
  const int64_t window = config.size_or("sliding_window", 128);
  const auto types = hugging_face::layer_types_of(config, model.layers.size());
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const std::string type = types.empty() ? i % 2 == 0 ? "sliding_attention" : "full_attention" : types[i];
    model.layers[i].attention.sliding_window = hugging_face::window_of(config, type, window, i);
  }
  return model;
}

TensorNames config_names(const Checkpoint&) {
  TensorNames names = hugging_face_names();
  const std::string& layer = names.layer_pattern;
  names.set("attention.sinks", {.weight = layer + "self_attn.sinks", .bias = {}});
  names.set("mlp.router", named(layer + "mlp.router"));
  // Gate and up take turns.
  const auto expert = [&](const char* part, const char* name, RowsOf rows) {
    names.set(part, {.weight = layer + "mlp.experts." + name,
                     .bias = layer + "mlp.experts." + name + "_bias",
                     .rows = rows,
                     .stacked = true,
                     .transposed = true});
  };
  expert("expert.gate", "gate_up_proj", RowsOf::even);
  expert("expert.up", "gate_up_proj", RowsOf::odd);
  expert("expert.down", "down_proj", RowsOf::all);
  return names;
}

ModelSpec from_gguf(const GgufReader& reader) {
  ModelSpec model = gguf::model_of(reader, kDefaults.family);
  const auto mlp = gguf::mlp_of(reader, {.activation = Activation::clamped_silu}, kRouter);
  RotaryConfig rotary = gguf::rotary_of(reader, kDefaults.rope_theta);
  rotary.truncate = false;
  const int64_t window = gguf::sliding_window_of(reader);
  bool has_window = true;
  for (AttentionConfig& attention : gguf::attentions_of(reader)) {
    attention.rotary_emb = rotary;
    attention.sliding_window = has_window ? window : 0;
    has_window = !has_window;
    attention.learned_sinks_size = 1;
    LayerSpec& layer = model.layers.emplace_back(LayerSpec{.attention = attention, .mlp = mlp});
    layer.attention_norm = layer.mlp_norm = model.final_norm;
  }
  return model;
}

TensorNames names_of_gguf(const Checkpoint&) {
  TensorNames names = gguf_names();
  names.set("mlp.norm", named(names.layer_pattern + "post_attention_norm"));
  return names;
}

}  // namespace

const Family kGptOss{.name = "gpt_oss",
                     .model_type = "gpt_oss",
                     .from_config = from_config,
                     .config_names = config_names,
                     .architecture = "gpt-oss",
                     .from_gguf = from_gguf,
                     .gguf_names = names_of_gguf};

}  // namespace regard
