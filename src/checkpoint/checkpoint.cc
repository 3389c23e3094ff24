#include "regard/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "checkpoint/manifest.h"
#include "checkpoint/mapped_file.h"
#include "checkpoint/parsed_file.h"
#include "tensor/checksum.h"
#include "tensor/fail.h"

namespace regard {
namespace {

namespace fs = std::filesystem;

// Enough for any config or tokenizer; a larger file is not one.
constexpr uintmax_t kMaxTextBytes = 256'000'000;

std::string read_text(const fs::path& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error) return {};
  require(size <= kMaxTextBytes, "checkpoint: {} has {} bytes, expected at most {}", path.string(), size,
          kMaxTextBytes);
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  require(in.good(), "checkpoint: {} can't be read", path.string());
  return text.str();
}

// What the index of a sharded checkpoint says: the file that each tensor is in.
std::map<std::string, std::string> read_index(const fs::path& index) {
  const auto parsed = nlohmann::json::parse(read_text(index), nullptr, false);
  require(parsed.is_object() && parsed.contains("weight_map") && parsed["weight_map"].is_object(),
          "checkpoint: {} has no object \"weight_map\"", index.string());
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : parsed["weight_map"].items()) {
    require(file.is_string(), "checkpoint: {}: \"{}\" is in no file", index.string(), printable(tensor));
    const auto& name = file.get_ref<const std::string&>();
    require(!name.empty() && name != "." && name != ".." && name.find_first_of(std::string("/\0", 2)) == name.npos,
            "checkpoint: {}: \"{}\" is in \"{}\", expected a file beside the index", index.string(), printable(tensor),
            printable(name));
    files.emplace(tensor, name);
  }
  require(!files.empty(), "checkpoint: {} names no files", index.string());
  return files;
}

// The file of a folder that is the checkpoint.
fs::path main_file(const fs::path& folder) {
  std::error_code error;
  for (const char* name : {"model.safetensors.index.json", "model.safetensors"})
    if (fs::exists(folder / name, error)) return folder / name;
  std::vector<fs::path> candidates;
  fs::directory_iterator entries(folder, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error))
    if (entries->path().extension() == ".gguf" || entries->path().extension() == ".safetensors")
      candidates.push_back(entries->path());
  require(!error, "checkpoint: folder {} can't be read: {}", folder.string(), error.message());
  require(!candidates.empty(), "checkpoint: folder {} holds no .safetensors and no .gguf file", folder.string());
  for (const fs::path& file : candidates)
    require(!file.filename().string().starts_with("rank-00000-of-"),
            "checkpoint: folder {} holds a model cut for ranks, expected a whole one", folder.string());
  require(candidates.size() == 1, "checkpoint: folder {} holds {} checkpoint files, expected one; name the file",
          folder.string(), candidates.size());
  return candidates.front();
}

// A tensor of a rank's file, as the manifest says that it is to be read.
void retype(StoredTensor& tensor, const Manifest::Entry& entry, std::string_view file) {
  const bool plain = !is_quantized(entry.type);
  const Shape stored = stored_shape(entry);
  require(tensor.type == (plain ? entry.type : WeightType::u8) && tensor.shape == stored,
          "checkpoint: {}: tensor \"{}\" is not what the manifest says", file, printable(tensor.name));
  tensor.type = entry.type;
  tensor.shape = entry.shape;
}

bool is_gguf(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
}

// A header's length, and the brace that the format asks for.
bool may_be_safetensors(std::span<const std::byte> bytes, const fs::path& file) {
  return file.extension() == ".safetensors" || (bytes.size() > 8 && bytes[8] == std::byte{'{'});
}

}  // namespace

struct Checkpoint::State {
  fs::path path;
  Format format = Format::safetensors;
  std::vector<MappedFile> files;
  std::vector<fs::path> other_files;  // that are not mapped
  ParsedFile parsed;
  std::string config_json;
  std::string tokenizer_json;
  std::string tokenizer_config_json;
  std::string chat_template;
  std::string generation_config_json;
  std::optional<CheckpointShard> shard;

  // The texts beside the tensors that `wanted` names.
  template <class Wanted>
  void read_texts(const fs::path& folder, const Wanted& wanted) {
    const std::array<std::string*, std::size(kShardTexts)> texts = {
        &config_json, &tokenizer_json, &tokenizer_config_json, &chat_template, &generation_config_json};
    for (size_t i = 0; i < texts.size(); ++i)
      if (wanted(kShardTexts[i])) {
        *texts[i] = read_text(folder / kShardTexts[i]);
        other_files.push_back(folder / kShardTexts[i]);
      }
  }

  void add(const fs::path& file) {
    files.emplace_back(file);
    const auto bytes = files.back().bytes();
    const bool gguf = is_gguf(bytes);
    require(gguf || may_be_safetensors(bytes, file),
            "checkpoint: {} is neither GGUF nor safetensors: it begins with neither \"GGUF\" nor a header",
            file.string());
    if (gguf) format = Format::gguf;
    ParsedFile part = gguf ? parse_gguf(bytes, file.string()) : parse_safetensors(bytes, file.string());
    std::ranges::move(part.tensors, std::back_inserter(parsed.tensors));
    parsed.metadata.merge(part.metadata);
    parsed.strings.merge(part.strings);
  }

  void add_shards(const fs::path& index) {
    const auto file_of = read_index(index);
    other_files.push_back(index);
    std::set<std::string> names;
    for (const auto& [tensor, file] : file_of) names.insert(file);
    std::set<std::string, std::less<>> read;
    for (const std::string& name : names) {
      const size_t before = parsed.tensors.size();
      add(index.parent_path() / name);
      for (size_t i = before; i < parsed.tensors.size(); ++i)
        read.insert(fmt::format("{}/{}", name, parsed.tensors[i].name));
    }
    for (const auto& [tensor, file] : file_of)
      require(read.contains(fmt::format("{}/{}", file, tensor)), "checkpoint: {}: tensor \"{}\" is not in \"{}\"",
              index.string(), printable(tensor), printable(file));
  }
};

WeightView StoredTensor::matrix() const {
  const auto [rows, columns] = folded(shape);
  return WeightView::make(type, rows, columns, bytes);
}

ConstTensorView StoredTensor::view() const {
  require(!is_quantized(type), "checkpoint: tensor \"{}\" has type {}, expected a plain type", printable(name),
          name_of(type));
  const DType dtype = dtype_from_name(name_of(type));
  require(reinterpret_cast<uintptr_t>(bytes.data()) % size_of(dtype) == 0,
          "checkpoint: tensor \"{}\" is not aligned to its {} elements", printable(name), name_of(type));
  return ConstTensorView(bytes.data(), dtype, shape);
}

Checkpoint Checkpoint::open(const fs::path& path) {
  std::error_code error;
  require(fs::exists(path, error), "checkpoint: {} does not exist", path.string());
  const fs::path file = fs::is_directory(path, error) ? main_file(path) : path;
  auto state = std::make_unique<State>();
  state->path = path;
  if (file.extension() == ".json")
    state->add_shards(file);
  else
    state->add(file);
  state->read_texts(file.parent_path(), [](std::string_view) { return true; });
  auto& tensors = state->parsed.tensors;
  std::ranges::sort(tensors, {}, &StoredTensor::name);
  const auto twice = std::ranges::adjacent_find(tensors, {}, &StoredTensor::name);
  require(twice == tensors.end(), "checkpoint: {}: tensor \"{}\" comes in two files", path.string(),
          twice == tensors.end() ? "" : printable(twice->name));
  return Checkpoint(std::move(state));
}

bool Checkpoint::holds_shards(const std::filesystem::path& folder) {
  std::error_code error;
  return fs::exists(folder / kManifestFile, error);
}

Checkpoint Checkpoint::open_shard(const fs::path& folder, int64_t rank) {
  const fs::path manifest_path = folder / kManifestFile;
  std::error_code error;
  require(fs::exists(manifest_path, error), "checkpoint: {} holds no {}, expected what regard shard writes",
          folder.string(), kManifestFile);
  const std::string manifest_text = read_text(manifest_path);
  const Manifest manifest = Manifest::parse(manifest_text, manifest_path.string());
  require(manifest.finished, "checkpoint: {} is not complete: regard shard was stopped while it wrote it",
          folder.string());
  require(rank >= 0 && rank < manifest.tp_degree, "checkpoint: rank is {}, but {} was cut for {} ranks", rank,
          folder.string(), manifest.tp_degree);
  const Manifest::File& expected = manifest.files[static_cast<size_t>(rank)];
  const std::string file = (folder / shard_file_name(rank, manifest.tp_degree)).string();
  auto state = std::make_unique<State>();
  state->path = folder;
  state->shard = CheckpointShard{.tp_degree = manifest.tp_degree,
                                 .rank = rank,
                                 .gqa = manifest.gqa,
                                 .whole = checksum(std::as_bytes(std::span(manifest_text)))};
  state->other_files.push_back(manifest_path);
  state->add(file);
  const auto bytes = state->files.back().bytes();
  require(static_cast<int64_t>(bytes.size()) == expected.bytes && checksum(bytes) == expected.checksum,
          "checkpoint: {} is not the file that {} describes: its size or its checksum is another", file,
          manifest_path.string());
  auto& tensors = state->parsed.tensors;
  std::ranges::sort(tensors, {}, &StoredTensor::name);
  require(std::ranges::equal(tensors, expected.tensors, {}, &StoredTensor::name, &Manifest::Entry::name),
          "checkpoint: {} has other tensors than {} says", file, manifest_path.string());
  for (size_t i = 0; i < tensors.size(); ++i) retype(tensors[i], expected.tensors[i], file);
  state->format = manifest.format;
  if (manifest.format == Format::gguf) {
    const fs::path metadata = folder / kShardMetadataFile;
    state->other_files.push_back(metadata);
    state->parsed.metadata = parse_gguf(MappedFile(metadata).bytes(), metadata.string()).metadata;
  }
  state->read_texts(folder, [&](std::string_view text) { return std::ranges::count(manifest.texts, text) > 0; });
  return Checkpoint(std::move(state));
}

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint::Format Checkpoint::format() const { return state_->format; }
const fs::path& Checkpoint::path() const { return state_->path; }

const std::optional<CheckpointShard>& Checkpoint::shard() const { return state_->shard; }

int64_t Checkpoint::file_bytes() const {
  int64_t bytes = 0;
  for (const MappedFile& file : state_->files) bytes += static_cast<int64_t>(file.bytes().size());
  return bytes;
}

std::vector<fs::path> Checkpoint::files() const {
  std::vector<fs::path> paths = state_->other_files;
  for (const MappedFile& file : state_->files) paths.push_back(file.path());
  return paths;
}

void Checkpoint::check_sizes() const {
  for (const MappedFile& file : state_->files) file.check_size();
}

std::span<const StoredTensor> Checkpoint::tensors() const { return state_->parsed.tensors; }

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(state_->parsed.tensors, name, {}, &StoredTensor::name);
  return found == state_->parsed.tensors.end() || found->name != name ? nullptr : &*found;
}

const StoredTensor& Checkpoint::tensor(std::string_view name) const {
  const StoredTensor* found = find(name);
  require(found != nullptr, "checkpoint: {} has no tensor \"{}\"", path().string(), printable(name));
  return *found;
}

const Metadata& Checkpoint::metadata() const { return state_->parsed.metadata; }
const std::string& Checkpoint::config_json() const { return state_->config_json; }
const std::string& Checkpoint::tokenizer_json() const { return state_->tokenizer_json; }
const std::string& Checkpoint::tokenizer_config_json() const { return state_->tokenizer_config_json; }
const std::string& Checkpoint::chat_template() const { return state_->chat_template; }
const std::string& Checkpoint::generation_config_json() const { return state_->generation_config_json; }
const std::map<std::string, std::string>& Checkpoint::safetensors_metadata() const { return state_->parsed.strings; }

void Checkpoint::release_pages() const {
  for (const MappedFile& file : state_->files) file.release_pages();
}

}  // namespace regard
