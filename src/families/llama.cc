// Llama 2 and 3, and what is built alike.
#include "families/family.h"
#include "families/gguf.h"
#include "families/hugging_face.h"

namespace regard {
namespace {

constexpr hugging_face::Defaults kDefaults{.family = "llama"};

ModelSpec from_config(const ConfigReader& config) {
  const Activation activation = hugging_face::activation_of(config, "hidden_act", "silu");
  ModelSpec model = hugging_face::model_of(config, kDefaults);
  AttentionConfig attention = hugging_face::attention_of(config, kDefaults);
  attention.qkv_bias = attention.o_bias = config.get<bool>("attention_bias", false);
  attention.rotary_emb = hugging_face::rotary_of(config, kDefaults);
  const DenseMlp mlp{.width = config.size("intermediate_size"),
                     .activation = activation,
                     .has_bias = config.get<bool>("mlp_bias", false)};
  model.layers = hugging_face::layers_of(config, attention, mlp, model.final_norm);
  return model;
}

TensorNames config_names(const Checkpoint&) { return hugging_face_names(); }

// Files of this architecture also hold models with experts (Mixtral).
ModelSpec from_gguf(const GgufReader& reader) {
  ModelSpec model = gguf::model_of(reader, kDefaults.family);
  model.layers = gguf::layers_of(reader, model.final_norm);
  return model;
}

// The conversion puts the two halves of each q and k head side by side.
TensorNames names_of_gguf(const Checkpoint& checkpoint) {
  TensorNames names = gguf_names();
  names.has_interleaved_heads = true;
  // Files from before experts were stacked.
  if (checkpoint.find("blk.0.ffn_gate.0.weight") != nullptr)
    for (const char* matrix : {"gate", "up", "down"})
      names.set(fmt::format("expert.{}", matrix),
                named(fmt::format("{}ffn_{}.{{expert}}", names.layer_pattern, matrix)));
  return names;
}

}  // namespace

const Family kLlama{.name = "llama",
                    .model_type = "llama",
                    .from_config = from_config,
                    .config_names = config_names,
                    .architecture = "llama",
                    .from_gguf = from_gguf,
                    .gguf_names = names_of_gguf};

}  // namespace regard
