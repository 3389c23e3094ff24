#include "families/family.h"

#include "families/metadata.h"

namespace regard {
namespace {

void check_layer(const Family& family, int64_t layer) {
  const int64_t layers = family.model().num_layers;
  require(layer >= 0 && layer < layers, "checkpoint: layer is {}, expected 0 to {}", layer, layers - 1);
}

}  // namespace

std::unique_ptr<Family> family_of(const Checkpoint& checkpoint) {
  std::string name;
  const bool gguf = checkpoint.format() == Checkpoint::Format::gguf;
  if (gguf) {
    name = GgufValues(checkpoint, "general.").text("architecture").value_or("");
  } else {
    require(!checkpoint.config_json().empty(), "checkpoint: {} has no config.json beside it",
            checkpoint.path().string());
    const auto config = nlohmann::json::parse(checkpoint.config_json(), nullptr, false);
    require(config.is_object(), "checkpoint: config.json of {} is no valid JSON object", checkpoint.path().string());
    name = JsonValues(config, "config.json").get<std::string>("model_type").value_or("");
  }
  require(name == "llama", "checkpoint: {} holds a model of family \"{}\"; this version loads \"llama\"",
          checkpoint.path().string(), name.substr(0, 80));
  return gguf ? llama_gguf(checkpoint) : llama_hugging_face(checkpoint);
}

std::vector<float> read_vector(const Checkpoint& checkpoint, const std::string& name) {
  const StoredTensor* stored = checkpoint.find(name);
  if (stored == nullptr) return {};
  const WeightView view = WeightView::make(stored->type, 1, stored->shape.elements(), stored->bytes);
  std::vector<float> values(static_cast<size_t>(view.columns));
  decode_row(view, 0, values);
  return values;
}

ModelConfig ModelConfig::from(const Checkpoint& checkpoint) { return family_of(checkpoint)->model(); }

AttentionConfig AttentionConfig::from(const Checkpoint& checkpoint, int64_t layer) {
  const auto family = family_of(checkpoint);
  check_layer(*family, layer);
  return family->attention(layer).validated();
}

Attention Attention::load(const Checkpoint& checkpoint, int64_t layer, const AttentionConfig& config,
                          const Threads& threads) {
  const auto family = family_of(checkpoint);
  check_layer(*family, layer);
  const AttentionConfig c = config.validated();
  const auto weight = [&](std::string_view part) {
    return checkpoint.tensor(family->layer_tensor(layer, part) + ".weight").matrix();
  };
  const auto bias = [&](std::string_view part, bool expected) {
    return expected ? read_vector(checkpoint, family->layer_tensor(layer, part) + ".bias") : std::vector<float>();
  };
  AttentionWeights weights;
  if (c.fused_qkv) {
    weights.qkv.qkv = weight("attention.qkv");
    weights.qkv.qkv_bias = bias("attention.qkv", c.qkv_bias);
  } else {
    weights.qkv.q = weight("attention.q");
    weights.qkv.k = weight("attention.k");
    weights.qkv.v = weight("attention.v");
    weights.qkv.q_bias = bias("attention.q", c.qkv_bias);
    weights.qkv.k_bias = bias("attention.k", c.qkv_bias);
    weights.qkv.v_bias = bias("attention.v", c.qkv_bias);
  }
  weights.qkv.q_row_order = family->rotary_row_order(c.num_attention_heads, c.head_dim);
  weights.qkv.k_row_order = family->rotary_row_order(c.num_key_value_heads, c.head_dim);
  weights.output = weight("attention.output");
  weights.output_bias = bias("attention.output", c.o_bias);
  return Attention::load(weights, c, threads);
}

}  // namespace regard
