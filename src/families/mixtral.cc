// Mixtral: Llama with experts, and the same window on every layer or none. GGUF files of it have the architecture
// "llama".
#include "families/family.h"
#include "families/hugging_face.h"

namespace regard {
namespace {

constexpr hugging_face::Defaults kDefaults{
    .family = "mixtral", .context_length = 131072, .rms_norm_eps = 1e-5, .rope_theta = 1e6};
constexpr RouterSpec kRouter{.scores = RouterScores::softmax_then_top_k, .normalized = true};

ModelSpec from_config(const ConfigReader& config) {
  ModelSpec model = hugging_face::model_of(config, kDefaults);
  AttentionConfig attention = hugging_face::attention_of(config, kDefaults);
  if (!config.contains("num_key_value_heads")) attention.num_key_value_heads = 8;
  attention.rotary_emb = hugging_face::rotary_of(config, kDefaults);
  attention.sliding_window = config.optional_size("sliding_window").value_or(0);
  const DenseMlp expert{.width = config.size("intermediate_size"),
                        .activation = hugging_face::activation_of(config, "hidden_act", "silu")};
  const int64_t experts = config.size_or("num_local_experts", 8, kMostExperts);
  const ExpertsMlp mlp{.experts = experts,
                       .experts_per_token = config.size_or("num_experts_per_tok", 2, experts),
                       .expert = expert,
                       .router = kRouter,
                       .shared = std::nullopt};
  model.layers = hugging_face::layers_of(config, attention, mlp, model.final_norm);
  return model;
}

// Released files hold three matrices for each expert. transformers 5 keeps the experts of a layer stacked in memory,
// gate above up.
TensorNames config_names(const Checkpoint& checkpoint) {
  TensorNames names = hugging_face_names();
  const std::string& layer = names.layer_pattern;
  if (checkpoint.find("model.layers.0.mlp.experts.gate_up_proj") != nullptr) {
    const auto expert = [&](const char* part, const char* name, RowsOf rows) {
      names.set(part, {.weight = layer + "mlp.experts." + name, .bias = {}, .rows = rows, .stacked = true});
    };
    names.set("mlp.router", named(layer + "mlp.gate"));
    expert("expert.gate", "gate_up_proj", RowsOf::first_half);
    expert("expert.up", "gate_up_proj", RowsOf::second_half);
    expert("expert.down", "down_proj", RowsOf::all);
    return names;
  }
  names.set("mlp.router", named(layer + "block_sparse_moe.gate"));
  const std::string expert = layer + "block_sparse_moe.experts.{expert}.";
  names.set("expert.gate", named(expert + "w1"));
  names.set("expert.up", named(expert + "w3"));
  names.set("expert.down", named(expert + "w2"));
  return names;
}

}  // namespace

const Family kMixtral{.name = "mixtral",
                      .model_type = "mixtral",
                      .from_config = from_config,
                      .config_names = config_names,
                      .architecture = {},
                      .from_gguf = nullptr,
                      .gguf_names = nullptr};

}  // namespace regard
