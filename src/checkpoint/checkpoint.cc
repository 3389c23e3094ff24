#include "regard/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "checkpoint/mapped_file.h"
#include "checkpoint/parsed_file.h"
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
  require(candidates.size() == 1, "checkpoint: folder {} holds {} checkpoint files, expected one; name the file",
          folder.string(), candidates.size());
  return candidates.front();
}

bool is_gguf(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
}

}  // namespace

struct Checkpoint::State {
  fs::path path;
  Format format = Format::safetensors;
  std::vector<MappedFile> files;
  ParsedFile parsed;
  std::string config_json;
  std::string tokenizer_json;
  std::string tokenizer_config_json;
  std::string chat_template;

  void add(const fs::path& file) {
    files.emplace_back(file);
    const auto bytes = files.back().bytes();
    const bool gguf = is_gguf(bytes);
    if (gguf) format = Format::gguf;
    ParsedFile part = gguf ? parse_gguf(bytes, file.string()) : parse_safetensors(bytes, file.string());
    std::ranges::move(part.tensors, std::back_inserter(parsed.tensors));
    parsed.metadata.merge(part.metadata);
    parsed.strings.merge(part.strings);
  }

  void add_shards(const fs::path& index) {
    const auto file_of = read_index(index);
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
  const int64_t columns = shape.rank() == 0 ? 1 : shape[shape.rank() - 1];
  return WeightView::make(type, columns == 0 ? 0 : shape.elements() / columns, columns, bytes);
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
  state->config_json = read_text(file.parent_path() / "config.json");
  state->tokenizer_json = read_text(file.parent_path() / "tokenizer.json");
  state->tokenizer_config_json = read_text(file.parent_path() / "tokenizer_config.json");
  state->chat_template = read_text(file.parent_path() / "chat_template.jinja");
  auto& tensors = state->parsed.tensors;
  std::ranges::sort(tensors, {}, &StoredTensor::name);
  const auto twice = std::ranges::adjacent_find(tensors, {}, &StoredTensor::name);
  require(twice == tensors.end(), "checkpoint: {}: tensor \"{}\" comes in two files", path.string(),
          twice == tensors.end() ? "" : printable(twice->name));
  return Checkpoint(std::move(state));
}

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint::Format Checkpoint::format() const { return state_->format; }
const fs::path& Checkpoint::path() const { return state_->path; }

int64_t Checkpoint::file_bytes() const {
  int64_t bytes = 0;
  for (const MappedFile& file : state_->files) bytes += static_cast<int64_t>(file.bytes().size());
  return bytes;
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
const std::map<std::string, std::string>& Checkpoint::safetensors_metadata() const { return state_->parsed.strings; }

void Checkpoint::release_pages() const {
  for (const MappedFile& file : state_->files) file.release_pages();
}

}  // namespace regard
