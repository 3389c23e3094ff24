#include <fmt/format.h>

#include <map>
#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/ranks.h"
#include "model/tensor_reader.h"
#include "regard/mask.h"
#include "regard/model_spec.h"

namespace regard::cli {
namespace {

using Json = nlohmann::ordered_json;

const char* name_of(RopeScaling scaling) {
  switch (scaling) {
    case RopeScaling::none:
      return "none";
    case RopeScaling::linear:
      return "linear";
    case RopeScaling::llama3:
      return "llama3";
    case RopeScaling::yarn:
      return "yarn";
    case RopeScaling::longrope:
      return "longrope";
  }
  return "";
}

Json rotary_of(const AttentionConfig& config) {
  if (!config.rotary_emb) return nullptr;
  const RotaryConfig& rotary = *config.rotary_emb;
  return {{"style", rotary.style == RotaryStyle::half ? "half" : "interleaved"},
          {"rotary_dim", rotary.rotary_dim},
          {"rope_theta", rotary.rope_theta},
          {"scaling", name_of(rotary.scaling)},
          {"factor", rotary.factor}};
}

Json describe_layer(const Checkpoint& checkpoint, const TensorNames& names, const LayerSpec& layer, int64_t index) {
  const AttentionConfig& config = layer.attention;
  Json types = Json::object();
  int64_t weight_bytes = 0;
  for (const char* part : {"attention.q", "attention.k", "attention.v", "attention.output"}) {
    const StoredTensor& weight = checkpoint.tensor(names.of(part, index).weight);
    types[part + std::string("attention.").size()] = regard::name_of(weight.type);
    weight_bytes += static_cast<int64_t>(weight.bytes.size());
  }
  // Of the f32 cache that generate and score use.
  const int64_t kv_bytes =
      config.num_key_value_heads * (config.head_dim + config.v_head_dim) * static_cast<int64_t>(sizeof(float));
  return {{"layer", index},
          {"num_attention_heads", config.num_attention_heads},
          {"num_key_value_heads", config.num_key_value_heads},
          {"head_dim", config.head_dim},
          {"v_head_dim", config.v_head_dim},
          {"mask", Mask::of(config).description()},
          {"rotary", rotary_of(config)},
          {"softmax_scale", config.softmax_scale},
          {"learned_sinks", config.learned_sinks_size},
          {"qkv_bias", config.qkv_bias},
          {"o_bias", config.o_bias},
          {"weight_types", types},
          {"weight_bytes", weight_bytes},
          {"kv_dtype", "f32"},
          {"kv_bytes_per_token", kv_bytes}};
}

std::string row_of(const Json& layer) {
  const Json& rotary = layer["rotary"];
  const std::string rope =
      rotary.is_null() ? "none"
                       : fmt::format("{} {} of {}, base {}{}", rotary["style"].get<std::string>(),
                                     rotary["rotary_dim"].get<int64_t>(), layer["head_dim"].get<int64_t>(),
                                     rotary["rope_theta"].get<double>(),
                                     rotary["scaling"] == "none" ? "" : ", " + rotary["scaling"].get<std::string>());
  std::string types;
  for (const auto& [part, type] : layer["weight_types"].items())
    types += (types.empty() ? "" : " ") + type.get<std::string>();
  return fmt::format("{:>3}/{:<3} {:>4} {:>4}  {:<24} {:<32} {:<24} {:>12} {:>10}",
                     layer["num_attention_heads"].get<int64_t>(), layer["num_key_value_heads"].get<int64_t>(),
                     layer["head_dim"].get<int64_t>(), layer["v_head_dim"].get<int64_t>(),
                     layer["mask"].get<std::string>(), rope, types, layer["weight_bytes"].get<int64_t>(),
                     layer["kv_bytes_per_token"].get<int64_t>());
}

// Runs of equal layers share a line.
void print_layers(const Json& layers) {
  fmt::print("{:<8} {:<7} {:>4} {:>4}  {:<24} {:<32} {:<24} {:>12} {:>10}\n", "layers", "heads", "dim", "v", "mask",
             "rotation", "weights q k v o", "bytes", "KV/token");
  for (size_t first = 0; first < layers.size();) {
    const std::string row = row_of(layers[first]);
    size_t last = first;
    while (last + 1 < layers.size() && row_of(layers[last + 1]) == row) ++last;
    fmt::print("{:<8} {}\n", first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last), row);
    first = last + 1;
  }
}

void run(const std::string& path, bool json) {
  const auto checkpoint = Checkpoint::open(path);
  const ModelSpec model = ModelSpec::from(checkpoint);
  const TensorNames names = tensor_names_of(checkpoint);
  const auto num_layers = std::ssize(model.layers);
  Json layers = Json::array();
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  for (int64_t i = 0; i < num_layers; ++i) {
    layers.push_back(describe_layer(checkpoint, names, model.layers[static_cast<size_t>(i)], i));
    weight_bytes += layers.back()["weight_bytes"].get<int64_t>();
    kv_bytes += layers.back()["kv_bytes_per_token"].get<int64_t>();
  }
  if (json) {
    print_json({{"model", path},
                {"family", model.family},
                {"file_bytes", checkpoint.file_bytes()},
                {"hidden_size", model.hidden_size},
                {"num_layers", num_layers},
                {"vocab_size", model.vocab_size},
                {"context_length", model.context_length},
                {"attention_weight_bytes", weight_bytes},
                {"kv_bytes_per_token", kv_bytes},
                {"layers", layers}});
    return;
  }
  fmt::print("{}: {}, {} layers of width {}, vocabulary {}, context {}, {:.1f} MB\n", path, model.family, num_layers,
             model.hidden_size, model.vocab_size, model.context_length,
             static_cast<double>(checkpoint.file_bytes()) * 1e-6);
  print_layers(layers);
  fmt::print("attention weights {} bytes in all; an f32 cache takes {} bytes a token in all layers\n", weight_bytes,
             kv_bytes);
}

}  // namespace

void add_inspect(CLI::App& app) {
  struct Options {
    std::string model;
    bool json = false;
  };
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("inspect", "The attention of every layer of a model");
  command.add_option("model", options->model, "A .gguf file, a .safetensors file or a Hugging Face folder")->required();
  command.add_flag("--json", options->json, "Print one JSON object");
  command.footer("Example:\n  regard inspect model.gguf");
  CommandRanks::run_alone(command, [options] { run(options->model, options->json); });
}

}  // namespace regard::cli
