#include "families/family.h"

#include <algorithm>
#include <array>

#include "tensor/fail.h"

namespace regard {
namespace {

using Json = nlohmann::json;

std::string list_of(std::string_view Family::*name) {
  std::string all;
  for (const Family* family : families())
    if (!(family->*name).empty()) all += fmt::format("{}\"{}\"", all.empty() ? "" : ", ", family->*name);
  return all;
}

const Family& known_family(std::string_view Family::*kind, const std::string& name, const std::string& file) {
  for (const Family* family : families())
    if (!name.empty() && family->*kind == name) return *family;
  fail("{} holds a model of family \"{}\", expected one of {}", file, printable(name), list_of(kind));
}

Json parsed(std::string_view text, const std::string& name) {
  Json json = Json::parse(text, nullptr, false);
  require(json.is_object(), "{} is no valid JSON object", name);
  return json;
}

std::string architecture_of(const Checkpoint& checkpoint) {
  return GgufReader(checkpoint, "general").text("architecture").value_or("");
}

const Family& config_family(const Json& json, const std::string& name) {
  return known_family(&Family::model_type, ConfigReader(json, name).get<std::string>("model_type", ""), name);
}

const Family& gguf_family(const Checkpoint& checkpoint) {
  return known_family(&Family::architecture, architecture_of(checkpoint), "checkpoint: " + checkpoint.path().string());
}

const std::string& config_text(const Checkpoint& checkpoint) {
  require(!checkpoint.config_json().empty(), "checkpoint: {} has no config.json beside it", checkpoint.path().string());
  return checkpoint.config_json();
}

int64_t weights_of(const std::variant<DenseMlp, ExpertsMlp>& mlp, int64_t hidden) {
  if (const auto* dense = std::get_if<DenseMlp>(&mlp)) return dense->weights(hidden);
  const auto& experts = std::get<ExpertsMlp>(mlp);
  const int64_t beside = experts.shared ? experts.shared->weights(hidden) : 0;
  return experts.experts * experts.expert.weights(hidden) + beside;
}

// Every layer's defaults are filled in, and its constraints checked.
ModelSpec validated(ModelSpec spec, const std::string& name) {
  for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
    try {
      spec.layers[layer].attention = spec.layers[layer].attention.validated();
    } catch (const Error& error) {
      fail("{}: layer {}: {}", name, layer, error.what());
    }
  }
  return spec;
}

}  // namespace

std::span<const Family* const> families() {
  static constexpr std::array<const Family*, 6> kFamilies = {&kLlama, &kQwen3, &kGemma3, &kGptOss, &kOlmo2, &kMixtral};
  return kFamilies;
}

TensorNames tensor_names_of(const Checkpoint& checkpoint) {
  if (checkpoint.format() == Checkpoint::Format::gguf) return gguf_family(checkpoint).gguf_names(checkpoint);
  const std::string name = "config.json of " + checkpoint.path().string();
  return config_family(parsed(config_text(checkpoint), name), name).config_names(checkpoint);
}

ModelSpec ModelSpec::from_config_json(std::string_view text, const std::string& name) {
  const Json json = parsed(text, name);
  const Family& family = config_family(json, name);
  const ConfigReader config(json, name);
  ModelSpec spec = family.from_config(config);
  config.require_all_understood(family.name);
  return validated(std::move(spec), name);
}

ModelSpec ModelSpec::from(const Checkpoint& checkpoint) {
  if (checkpoint.format() == Checkpoint::Format::safetensors) {
    return from_config_json(config_text(checkpoint), "config.json");
  }
  const Family& family = gguf_family(checkpoint);
  const GgufReader reader(checkpoint, std::string(family.architecture));
  ModelSpec spec = family.from_gguf(reader);
  reader.require_all_understood();
  return validated(std::move(spec), "checkpoint: " + checkpoint.path().string());
}

ModelSpec ModelSpec::with_context_length(int64_t length) const {
  require(length >= 1, "model: context_length is {}, expected 1 or more", length);
  ModelSpec spec = *this;
  spec.context_length = length;
  for (LayerSpec& layer : spec.layers)
    if (auto& rotary = layer.attention.rotary_emb) rotary->longrope_factors = rotary->longrope_factors_for(length);
  return spec;
}

std::vector<ModelSpec::EqualLayers> ModelSpec::equal_layers() const {
  std::vector<EqualLayers> all;
  for (const LayerSpec& layer : layers) {
    const auto same = std::ranges::find_if(all, [&](const EqualLayers& other) { return *other.layer == layer; });
    if (same == all.end())
      all.push_back({.layer = &layer, .count = 1});
    else
      ++same->count;
  }
  return all;
}

double ModelSpec::weight_bytes() const {
  const auto hidden = static_cast<double>(hidden_size);
  double bytes = hidden * static_cast<double>(vocab_size) * (head.tied ? 1 : 2) * bytes_per_weight.embedding;
  for (const LayerSpec& layer : layers) {
    const AttentionConfig& a = layer.attention;
    const int64_t heads =
        a.num_attention_heads * (a.head_dim + a.v_head_dim) + a.num_key_value_heads * (a.head_dim + a.v_head_dim);
    bytes += hidden * static_cast<double>(heads) * bytes_per_weight.attention;
    bytes += static_cast<double>(weights_of(layer.mlp, hidden_size)) * bytes_per_weight.mlp;
  }
  return bytes;
}

}  // namespace regard
