#include "checkpoint/manifest.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "checkpoint/parsed_file.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Json = nlohmann::ordered_json;
// For reading: an ordered_json looks for a key among all those before.
using ReadJson = nlohmann::json;

constexpr std::string_view kKind = "regard shards";
constexpr int64_t kVersion = 1;
constexpr std::array kStrategies = {GQA::REPLICATE_TO_TP_DEGREE, GQA::CONVERT_TO_MHA};

std::string_view name_of(Checkpoint::Format format) {
  return format == Checkpoint::Format::gguf ? "gguf" : "safetensors";
}

Json to_object(const Manifest::Entry& entry) {
  return {{"type", regard::name_of(entry.type)},
          {"shape", std::vector<int64_t>(entry.shape.begin(), entry.shape.end())},
          {"bytes", entry.shape.elements() / block_of(entry.type).values * block_of(entry.type).bytes}};
}

// Json's own exceptions, of what is missing or of another type, are caught where the reading starts.
class Reader {
 public:
  explicit Reader(std::string_view name) : name_(name) {}

  Manifest read(const ReadJson& json) const {
    check(json.at("kind") == kKind && json.at("version") == kVersion);
    Manifest manifest;
    manifest.finished = json.at("finished").get<bool>();
    manifest.tp_degree = integer(json.at("tp_degree"), kMostShards);
    manifest.gqa = choice(json.at("gqa"), kStrategies);
    manifest.format = choice(json.at("format"), std::array{Checkpoint::Format::gguf, Checkpoint::Format::safetensors});
    manifest.family = json.at("family").get<std::string>();
    manifest.source = json.at("source").get<std::string>();
    for (const ReadJson& text : json.at("texts")) {
      manifest.texts.push_back(text.get<std::string>());
      check(std::ranges::count(kShardTexts, manifest.texts.back()) == 1);
    }
    for (const ReadJson& file : json.at("files")) manifest.files.push_back(read_file(file));
    check(manifest.tp_degree >= 1 && manifest.files.size() == static_cast<size_t>(manifest.tp_degree));
    return manifest;
  }

 private:
  void check(bool right) const { require(right, "checkpoint: {} is no manifest of this version of regard", name_); }

  int64_t integer(const ReadJson& json, int64_t most) const {
    check(json.is_number_unsigned() && json.get<uint64_t>() <= static_cast<uint64_t>(most));
    return json.get<int64_t>();
  }

  template <class Values>
  typename Values::value_type choice(const ReadJson& json, const Values& values) const {
    for (const auto value : values)
      if (json == name_of(value)) return value;
    fail("checkpoint: {} is no manifest of this version of regard", name_);
  }

  WeightType type_of(const ReadJson& json) const {
    for (int i = 0; i <= static_cast<int>(WeightType::q6_k); ++i)
      if (json == regard::name_of(static_cast<WeightType>(i))) return static_cast<WeightType>(i);
    fail("checkpoint: {} is no manifest of this version of regard", name_);
  }

  uint64_t hexadecimal(const ReadJson& json) const {
    const auto& text = json.get_ref<const std::string&>();
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    check(text.size() == 16 && error == std::errc() && end == text.data() + text.size());
    return value;
  }

  Manifest::File read_file(const ReadJson& json) const {
    constexpr int64_t kMost = int64_t{1} << 62;
    Manifest::File file{
        .bytes = integer(json.at("bytes"), kMost), .checksum = hexadecimal(json.at("checksum")), .tensors = {}};
    // items() gives nothing for what is no object.
    for (const auto& [tensor, info] : json.at("tensors").get_ref<const ReadJson::object_t&>()) {
      std::vector<int64_t> sizes;
      for (const ReadJson& size : info.at("shape")) sizes.push_back(integer(size, kMost));
      file.tensors.push_back({.name = tensor, .type = type_of(info.at("type")), .shape = Shape(sizes)});
    }
    return file;
  }

  std::string_view name_;
};

}  // namespace

Shape stored_shape(const Manifest::Entry& entry) {
  if (!is_quantized(entry.type)) return entry.shape;
  const auto [rows, columns] = folded(entry.shape);
  const WeightBlock block = block_of(entry.type);
  return {rows, columns / block.values * block.bytes};
}

std::string shard_file_name(int64_t rank, int64_t tp_degree) {
  return fmt::format("rank-{:05}-of-{:05}.safetensors", rank, tp_degree);
}

std::string Manifest::to_json() const {
  Json all = Json::array();
  for (size_t rank = 0; rank < files.size(); ++rank) {
    Json tensors = Json::object();
    for (const Entry& entry : files[rank].tensors)
      tensors.get_ref<Json::object_t&>().emplace_back(entry.name, to_object(entry));
    all.push_back({{"name", shard_file_name(static_cast<int64_t>(rank), tp_degree)},
                   {"bytes", files[rank].bytes},
                   {"checksum", fmt::format("{:016x}", files[rank].checksum)},
                   {"tensors", tensors}});
  }
  const Json json = {{"kind", kKind},
                     {"version", kVersion},
                     {"regard", REGARD_VERSION},
                     {"finished", finished},
                     {"tp_degree", tp_degree},
                     {"gqa", regard::name_of(gqa)},
                     {"family", family},
                     {"source", source},
                     {"format", name_of(format)},
                     {"texts", texts},
                     {"files", all}};
  try {
    return json.dump(1) + "\n";
  } catch (const Json::exception&) {
    fail("checkpoint: {} has a tensor whose name is no UTF-8", printable(source));
  }
}

Manifest Manifest::parse(std::string_view text, std::string_view name) {
  try {
    return Reader(name).read(ReadJson::parse(text));
  } catch (const ReadJson::exception&) {
    fail("checkpoint: {} is no manifest of this version of regard", name);
  }
}

}  // namespace regard
