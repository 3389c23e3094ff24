#include "families/family.h"

#include <algorithm>
#include <cmath>

#include "families/metadata.h"

namespace regard {
namespace {

// Numbers beyond these are a damaged file, not a model.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxSize = int64_t{1} << 24;

// A model that was cut for ranks is loaded by just these.
void check_shard(const CheckpointShard& shard, const Ranks& ranks) {
  const ParallelConfig& parallel = ranks.config();
  require(parallel.tp_degree == shard.tp_degree, "checkpoint: it was cut for {} ranks, but there are {}",
          shard.tp_degree, parallel.tp_degree);
  require(parallel.cp_degree == 1 && parallel.attention_dp_degree == 1,
          "checkpoint: it was cut by heads alone, but cp_degree is {} and attention_dp_degree {}, expected 1 and 1",
          parallel.cp_degree, parallel.attention_dp_degree);
  require(ranks.rank() == shard.rank && parallel.gqa == shard.gqa,
          "checkpoint: it is the part of rank {} under {}, but this is rank {} under {}", shard.rank,
          name_of(shard.gqa), ranks.rank(), name_of(parallel.gqa));
}

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
          checkpoint.path().string(), printable(name));
  return gguf ? llama_gguf(checkpoint) : llama_hugging_face(checkpoint);
}

ModelConfig checked(ModelConfig model, const Checkpoint& checkpoint) {
  const auto check = [&](const char* what, int64_t value, int64_t most) {
    require(value >= 1 && value <= most, "checkpoint: {}: the {} is {}, expected 1 to {}", checkpoint.path().string(),
            what, value, most);
  };
  check("number of layers", model.num_layers, kMaxLayers);
  check("hidden size", model.hidden_size, kMaxSize);
  check("intermediate size of the MLP", model.intermediate_size, kMaxSize);
  check("vocabulary size", model.vocab_size, kMaxSize);
  check("context length", model.context_length, kMaxSize);
  require(std::isfinite(model.rms_norm_eps) && model.rms_norm_eps >= 0,
          "checkpoint: {}: the eps of the norms is {}, expected 0 or more", checkpoint.path().string(),
          model.rms_norm_eps);
  return model;
}

std::vector<float> read_vector(const Checkpoint& checkpoint, const std::string& name) {
  const StoredTensor* stored = checkpoint.find(name);
  if (stored == nullptr) return {};
  const WeightView view = WeightView::make(stored->type, 1, stored->shape.elements(), stored->bytes);
  std::vector<float> values(static_cast<size_t>(view.columns));
  decode_row(view, 0, values);
  require(std::ranges::none_of(values, [](float value) { return std::isnan(value); }),
          "checkpoint: tensor \"{}\" holds NaN", name);
  return values;
}

WeightView read_matrix(const Checkpoint& checkpoint, const std::string& name) {
  const StoredTensor& stored = checkpoint.tensor(name);
  switch (stored.type) {
    case WeightType::f8_e4m3:
    case WeightType::f8_e5m2:
    case WeightType::i8:
    case WeightType::u8:
    case WeightType::i32:
    case WeightType::i64:
    case WeightType::boolean:
      fail(
          "checkpoint: tensor \"{}\" is a matrix of {}; such weights have scales in other tensors, which this version "
          "does not read",
          name, name_of(stored.type));
    default:
      return stored.matrix();
  }
}

ModelConfig ModelConfig::from(const Checkpoint& checkpoint) { return family_of(checkpoint)->model(); }

AttentionConfig AttentionConfig::from(const Checkpoint& checkpoint, int64_t layer) {
  const auto family = family_of(checkpoint);
  check_layer(*family, layer);
  return family->attention(layer).validated();
}

Attention Attention::load(const Checkpoint& checkpoint, int64_t layer, const AttentionConfig& config,
                          const Threads& threads, const Ranks& ranks) {
  const auto family = family_of(checkpoint);
  check_layer(*family, layer);
  AttentionConfig c = config.validated();
  AttentionWeights weights;
  if (const auto& shard = checkpoint.shard()) {
    check_shard(*shard, ranks);
    const GqaSharding heads(c.num_attention_heads, c.num_key_value_heads, shard->tp_degree, shard->gqa);
    c.num_attention_heads = heads.local_heads();
    c.num_key_value_heads = heads.local_kv_heads();
    weights.is_shard = true;
  }
  const auto weight = [&](std::string_view part) {
    return read_matrix(checkpoint, family->layer_tensor(layer, part) + ".weight");
  };
  const auto bias = [&](std::string_view part, bool expected) {
    return expected ? read_vector(checkpoint, family->layer_tensor(layer, part) + ".bias") : std::vector<float>();
  };
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
  // Before memory is asked for by these numbers, the weights must have them.
  const auto check_rows = [&](const char* name, const StoredMatrix& stored, int64_t heads) {
    require(stored.empty() || stored.rows() == heads * c.head_dim,
            "checkpoint: {} of layer {} has shape [{}, {}], expected [{}, {}]", name, layer, stored.rows(),
            stored.columns(), heads * c.head_dim, c.hidden_size);
  };
  check_rows("q_proj", weights.qkv.q, c.num_attention_heads);
  check_rows("k_proj", weights.qkv.k, c.num_key_value_heads);
  weights.qkv.q_row_order = family->rotary_row_order(c.num_attention_heads, c.head_dim);
  weights.qkv.k_row_order = family->rotary_row_order(c.num_key_value_heads, c.head_dim);
  weights.output = weight("attention.output");
  weights.output_bias = bias("attention.output", c.o_bias);
  try {
    return Attention::load(weights, config, threads, ranks);
  } catch (const Error& error) {
    fail("checkpoint: layer {}: {}", layer, error.what());
  }
}

}  // namespace regard
