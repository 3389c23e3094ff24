#include "regard/model_shape.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>

#include "families/family.h"
#include "families/metadata.h"
#include "regard/attention_config.h"

namespace regard {
namespace {

using Json = nlohmann::json;
using Names = std::initializer_list<const char*>;

// Numbers beyond these are a damaged file, not a model.
constexpr int64_t kMostLayers = 4096;
constexpr int64_t kMostSize = int64_t{1} << 24;
constexpr int64_t kMostExperts = int64_t{1} << 16;

// In place of a default: the key has to be there.
constexpr int64_t kRequired = -1;

// MXFP4 stores blocks of 32 numbers of 4 bits and one scale of 8.
constexpr double kMxfp4Bytes = (32 * 4 + 8) / 32.0 / 8;

template <size_t N>
bool is_one_of(std::string_view name, const std::array<std::string_view, N>& names) {
  return std::ranges::find(names, name) != names.end();
}

// One config.json. A key may have several names; the first that is there counts.
class ConfigJson {
 public:
  ConfigJson(const Json& json, std::string name)
      : whole_(json, name), values_(nested(json, "text_config"), name), name_(std::move(name)) {}

  ModelShape read() const {
    ModelShape shape;
    shape.family = values_.get<std::string>("model_type").value_or("unknown");
    refuse_other_attention();
    shape.hidden_size = size({"hidden_size", "n_embd", "d_model"});
    shape.vocab_size = size({"vocab_size"});
    shape.tied_embeddings = values_.get<bool>("tie_word_embeddings").value_or(false);
    const int64_t layers = number({"num_hidden_layers", "n_layer", "n_layers"}, kRequired, 1, kMostLayers);
    for (int64_t i = 0; i < layers; ++i) add_layer(shape, attention(i), mlp(i));
    read_weight_bytes(shape);
    return shape;
  }

 private:
  // The object under that key, or the outer one.
  static const Json& nested(const Json& json, const char* key) {
    const auto found = json.find(key);
    return found != json.end() && found->is_object() ? *found : json;
  }

  static void add_layer(ModelShape& shape, const LayerShape& attention, const MlpShape& mlp) {
    for (auto& same : shape.layers)
      if (same.attention == attention && same.mlp == mlp) {
        ++same.count;
        return;
      }
    shape.layers.push_back({attention, mlp, 1});
  }

  // One of the names, in the object itself or in one that DBRX nests.
  std::optional<int64_t> find(Names names) const {
    for (const char* name : names)
      for (const JsonValues& values : {values_, values_.object("attn_config"), values_.object("ffn_config")})
        if (const auto value = values.get<int64_t>(name)) return value;
    return std::nullopt;
  }
  int64_t number(Names names, int64_t otherwise, int64_t least, int64_t most) const {
    const auto found = find(names);
    require(found || otherwise != kRequired, "{} has no \"{}\"", name_, *names.begin());
    const int64_t value = found.value_or(otherwise);
    require(value >= least && value <= most, "{}: \"{}\" is {}, expected {} to {}", name_, *names.begin(), value, least,
            most);
    return value;
  }
  int64_t size(Names names, int64_t otherwise = kRequired) const { return number(names, otherwise, 1, kMostSize); }
  // 0: not there.
  int64_t optional_size(Names names) const { return number(names, 0, 0, kMostSize); }

  void refuse_other_attention() const {
    require(!values_.get<int64_t>("kv_lora_rank"),
            "{}: \"kv_lora_rank\" is for latent attention (MLA), which can't be planned", name_);
  }

  template <class T>
  std::optional<T> of_layer(const char* key, int64_t layer) const {
    const auto list = values_.get<std::vector<T>>(key);
    if (!list) return std::nullopt;
    require(layer < std::ssize(*list), "{}: \"{}\" has {} entries, expected one a layer", name_, key, list->size());
    return (*list)[static_cast<size_t>(layer)];
  }

  LayerShape attention(int64_t layer) const {
    LayerShape shape;
    shape.hidden_size = size({"hidden_size", "n_embd", "d_model"});
    shape.num_attention_heads = size({"num_attention_heads", "n_head", "n_heads"});
    shape.num_key_value_heads = kv_heads(shape.num_attention_heads);
    shape.head_dim = size({"head_dim"}, std::max<int64_t>(1, shape.hidden_size / shape.num_attention_heads));
    shape.v_head_dim = size({"v_head_dim"}, shape.head_dim);
    shape.mask = mask(layer);
    try {
      shape.check();
    } catch (const Error& error) {
      fail("{}: {}", name_, error.what());
    }
    return shape;
  }

  int64_t kv_heads(int64_t heads) const {
    const bool falcon_of_one = values_.get<bool>("multi_query").value_or(false) &&
                               !values_.get<bool>("new_decoder_architecture").value_or(false);
    return falcon_of_one ? 1 : size({"num_key_value_heads", "num_kv_heads", "kv_n_heads", "n_head_kv"}, heads);
  }

  Mask mask(int64_t layer) const {
    const std::string kind = of_layer<std::string>("layer_types", layer).value_or(kind_without_list(layer));
    if (kind == "full_attention") return {};
    if (kind == "sliding_attention") return {.sliding_window = size({"sliding_window"})};
    if (kind == "chunked_attention") return {.attention_chunk_size = size({"attention_chunk_size"})};
    fail(
        "{}: layer {} is of type \"{}\", which can't be planned; expected full_attention, sliding_attention or "
        "chunked_attention",
        name_, layer, printable(kind));
  }

  // Older files leave the kinds of layers to the code of their family.
  std::string kind_without_list(int64_t layer) const {
    if (optional_size({"attention_chunk_size"}) > 0) {
      const bool rotary = of_layer<int64_t>("no_rope_layers", layer).value_or((layer + 1) % 4 != 0 ? 1 : 0) != 0;
      return rotary ? "chunked_attention" : "full_attention";
    }
    const std::string family = values_.get<std::string>("model_type").value_or("");
    const bool off_by_default = family.starts_with("qwen");
    if (optional_size({"sliding_window"}) == 0 || !values_.get<bool>("use_sliding_window").value_or(!off_by_default))
      return "full_attention";
    bool window = true;
    if (const int64_t pattern = optional_size({"sliding_window_pattern"}); pattern > 0)
      window = (layer + 1) % pattern != 0;
    else if (family == "gemma2" || family == "gpt_oss")
      window = layer % 2 == 0;
    else if (off_by_default)
      window = layer >= optional_size({"max_window_layers"});
    return window ? "sliding_attention" : "full_attention";
  }

  MlpShape mlp(int64_t layer) const {
    constexpr std::array<std::string_view, 8> kWithoutGate = {"gpt2",     "falcon",      "starcoder2", "phi",
                                                              "gpt_neox", "gpt_bigcode", "opt",        "mpt"};
    const std::string family = values_.get<std::string>("model_type").value_or("");
    MlpShape shape{.matrices = is_one_of(family, kWithoutGate) ? 2 : 3};
    const int64_t hidden = size({"hidden_size", "n_embd", "d_model"});
    const Names dense = {"intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim"};
    const int64_t experts =
        number({"num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"}, 1, 0, kMostExperts);
    if (experts <= 1 || !is_sparse(layer)) {
      // Llama 4 spells the width of its dense layers apart.
      const int64_t apart = optional_size({"intermediate_size_mlp"});
      shape.width = apart > 0 ? apart : size(dense, 4 * hidden);
      return shape;
    }
    shape.experts = experts;
    shape.experts_per_token = number({"num_experts_per_tok", "experts_per_token", "moe_top_k"}, kRequired, 1, experts);
    shape.width = size({"moe_intermediate_size", "intermediate_size", "ffn_hidden_size"});
    shape.shared_width = optional_size({"shared_expert_intermediate_size"});
    if (shape.shared_width == 0) shape.shared_width = number({"n_shared_experts"}, 0, 0, kMostExperts) * shape.width;
    if (family.starts_with("llama4")) shape.shared_width = shape.width;
    require(shape.shared_width <= kMostSize, "{}: the shared experts are {} wide, expected {} at most", name_,
            shape.shared_width, kMostSize);
    return shape;
  }

  bool is_sparse(int64_t layer) const {
    if (layer < optional_size({"first_k_dense_replace"})) return false;
    if (const auto dense = values_.get<std::vector<int64_t>>("mlp_only_layers"))
      if (std::ranges::count(*dense, layer) > 0) return false;
    const int64_t step = number({"decoder_sparse_step", "interleave_moe_layer_step"}, 1, 1, kMostLayers);
    return (layer + 1) % step == 0;
  }

  // What is not said to be quantised has the type of the model.
  void read_weight_bytes(ModelShape& shape) const {
    std::string dtype;
    for (const JsonValues& values : {whole_, values_})
      for (const char* key : {"torch_dtype", "dtype"}) dtype = values.get<std::string>(key).value_or(dtype);
    const double plain = dtype == "float32" ? 4 : 2;
    shape.attention_weight_bytes = shape.mlp_weight_bytes = shape.embedding_weight_bytes = plain;
    const JsonValues own = values_.object("quantization_config");
    const JsonValues quantisation = own.empty() ? whole_.object("quantization_config") : own;
    const auto method = quantisation.get<std::string>("quant_method").value_or("");
    if (method == "mxfp4") {
      shape.mlp_weight_bytes = kMxfp4Bytes;
    } else if (const double bytes = quantised_bytes(quantisation, method); bytes > 0) {
      shape.attention_weight_bytes = shape.mlp_weight_bytes = bytes;
    }
  }

  // Of the matrices of layers, without their few scales; 0: not quantised, or in a way that is not known.
  double quantised_bytes(const JsonValues& quantisation, const std::string& method) const {
    if (method.find("fp8") != std::string::npos) return 1;
    if (quantisation.get<bool>("load_in_4bit").value_or(false)) return 0.5;
    if (quantisation.get<bool>("load_in_8bit").value_or(false)) return 1;
    const auto bits = quantisation.get<int64_t>("bits");
    require(!bits || (*bits >= 1 && *bits <= 32), "{}: \"bits\" of \"quantization_config\" is {}, expected 1 to 32",
            name_, bits.value_or(0));
    return static_cast<double>(bits.value_or(0)) / 8;
  }

  JsonValues whole_;
  JsonValues values_;  // of the text model, where a file describes several
  std::string name_;
};

}  // namespace

ModelShape ModelShape::from_config_json(std::string_view text, const std::string& name) {
  const auto json = Json::parse(text, nullptr, false);
  require(json.is_object(), "{} is no valid JSON object", name);
  return ConfigJson(json, name).read();
}

ModelShape ModelShape::from(const Checkpoint& checkpoint) {
  if (!checkpoint.config_json().empty()) return from_config_json(checkpoint.config_json(), "config.json");
  const auto family = family_of(checkpoint);
  const ModelConfig model = family->model();
  ModelShape shape{.family = model.family,
                   .hidden_size = model.hidden_size,
                   .vocab_size = model.vocab_size,
                   .tied_embeddings = model.tied_embeddings};
  for (int64_t i = 0; i < model.num_layers; ++i) {
    const LayerShape attention = LayerShape::of(family->attention(i).validated());
    attention.check();
    if (shape.layers.empty() || !(shape.layers.back().attention == attention))
      shape.layers.push_back({attention, {.width = model.intermediate_size}, 0});
    ++shape.layers.back().count;
  }
  double bytes = 0;
  double weights = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    bytes += static_cast<double>(tensor.bytes.size());
    weights += static_cast<double>(tensor.shape.elements());
  }
  shape.attention_weight_bytes = shape.mlp_weight_bytes = shape.embedding_weight_bytes = bytes / std::max(1.0, weights);
  return shape;
}

int64_t ModelShape::num_layers() const {
  int64_t count = 0;
  for (const Layers& same : layers) count += same.count;
  return count;
}

double ModelShape::weight_bytes() const {
  const auto hidden = static_cast<double>(hidden_size);
  double bytes = hidden * static_cast<double>(vocab_size) * (tied_embeddings ? 1 : 2) * embedding_weight_bytes;
  for (const Layers& same : layers) {
    const LayerShape& a = same.attention;
    const auto heads =
        static_cast<double>(a.num_attention_heads * (a.head_dim + a.v_head_dim) + a.num_key_value_heads * a.kv_width());
    const MlpShape& m = same.mlp;
    const double width = static_cast<double>(m.experts * m.width + m.shared_width) * static_cast<double>(m.matrices);
    bytes += static_cast<double>(same.count) * hidden * (heads * attention_weight_bytes + width * mlp_weight_bytes);
  }
  return bytes;
}

}  // namespace regard
