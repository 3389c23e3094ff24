// Qwen3: RMS norms on the heads of queries and keys.
#include "families/family.h"
#include "families/gguf.h"
#include "families/hugging_face.h"

namespace regard {
namespace {

constexpr hugging_face::Defaults kDefaults{.family = "qwen3", .context_length = 32768};

ModelSpec from_config(const ConfigReader& config) {
  ModelSpec model = hugging_face::model_of(config, kDefaults);
  AttentionConfig attention = hugging_face::attention_of(config, kDefaults);
  attention.head_dim = config.size_or("head_dim", 128);
  attention.qkv_bias = attention.o_bias = config.get<bool>("attention_bias", false);
  attention.rotary_emb = hugging_face::rotary_of(config, kDefaults);
  attention.q_layernorm = attention.k_layernorm = QKNorm{.eps = *attention.rms_norm_eps};
  const DenseMlp mlp{.width = config.size("intermediate_size"),
                     .activation = hugging_face::activation_of(config, "hidden_act", "silu")};
  model.layers = hugging_face::layers_of(config, attention, mlp, model.final_norm);
  // Windows count only where use_sliding_window says so, and then on the layers from max_window_layers on.
  const bool has_windows = config.get<bool>("use_sliding_window", false);
  const int64_t sliding_window = config.get<int64_t>("sliding_window", 4096);
  const int64_t first_window = config.get<int64_t>("max_window_layers", 28);
  const auto types = hugging_face::layer_types_of(config, model.layers.size());
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const bool has_window = has_windows && static_cast<int64_t>(i) >= first_window;
    const std::string type = types.empty() ? has_window ? "sliding_attention" : "full_attention" : types[i];
    model.layers[i].attention.sliding_window =
        hugging_face::window_of(config, type, has_windows ? sliding_window : 0, i);
  }
  return model;
}

TensorNames config_names(const Checkpoint&) { return hugging_face_names(); }

ModelSpec from_gguf(const GgufReader& reader) {
  ModelSpec model = gguf::model_of(reader, kDefaults.family);
  model.layers = gguf::layers_of(reader, model.final_norm);
  for (LayerSpec& layer : model.layers)
    layer.attention.q_layernorm = layer.attention.k_layernorm = QKNorm{.eps = *layer.attention.rms_norm_eps};
  return model;
}

TensorNames names_of_gguf(const Checkpoint&) { return gguf_names(); }

}  // namespace

const Family kQwen3{.name = "qwen3",
                    .model_type = "qwen3",
                    .from_config = from_config,
                    .config_names = config_names,
                    .architecture = "qwen3",
                    .from_gguf = from_gguf,
                    .gguf_names = names_of_gguf};

}  // namespace regard
