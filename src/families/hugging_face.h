#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "families/config_reader.h"
#include "regard/model_spec.h"

// What families share in reading a Hugging Face config.json. Defaults are those of transformers' config classes, which
// apply where a file leaves a key out.
namespace regard::hugging_face {

// What differs between families.
struct Defaults {
  std::string_view family;
  int64_t context_length = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  bool tied = false;
};

// Sizes, head and norm of the whole model; no layers. Keys that no family computes with are ignored.
[[nodiscard]] ModelSpec model_of(const ConfigReader& config, const Defaults& defaults);

// Heads, widths, causality and the type of the model. head_dim is that of the file, or hidden_size / heads.
[[nodiscard]] AttentionConfig attention_of(const ConfigReader& config, const Defaults& defaults);

// The rotation of layers of a type ("full_attention", ...). `rope_parameters`, of all layers or by layer type, or the
// older `rope_theta` and `rope_scaling`, which wins where both are there [POS-5]..[POS-7].
[[nodiscard]] RotaryConfig rotary_of(const ConfigReader& config, const Defaults& defaults,
                                     const std::string& layer_type = "full_attention");
// The same from an object like rope_parameters, with that base where it names none.
[[nodiscard]] RotaryConfig rotary_from(const ConfigReader& config, const ConfigReader& parameters, double rope_theta,
                                       const Defaults& defaults);

// The activation that a key names.
[[nodiscard]] Activation activation_of(const ConfigReader& config, const std::string& key, const char* otherwise);

// `layer_types`, one for each layer; empty where the file has none. Throws Error for a wrong number.
[[nodiscard]] std::vector<std::string> layer_types_of(const ConfigReader& config, size_t layers);

// The window of a layer of that type: 0 for full attention. Throws Error for other types, naming the layer.
[[nodiscard]] int64_t window_of(const ConfigReader& config, const std::string& layer_type, int64_t sliding_window,
                                size_t layer);

// `num_hidden_layers` layers as in Llama: RMS norms before attention and MLP.
[[nodiscard]] std::vector<LayerSpec> layers_of(const ConfigReader& config, const AttentionConfig& attention,
                                               const std::variant<DenseMlp, ExpertsMlp>& mlp, const NormSpec& norm);

}  // namespace regard::hugging_face
