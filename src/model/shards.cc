#include "regard/shards.h"

#include <algorithm>
#include <array>
#include <optional>

#include "checkpoint/manifest.h"
#include "checkpoint/mapped_file.h"
#include "checkpoint/parsed_file.h"
#include "families/family.h"
#include "model/shard_cuts.h"
#include "tensor/checksum.h"
#include "tensor/fail.h"
#include "tensor/replaced_file.h"

namespace regard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kShardKind = "regard shard";

void write_file(const fs::path& path, std::string_view bytes) {
  ReplacedFile file(path);
  file.stream().write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.commit();
}

std::array<const std::string*, std::size(kShardTexts)> texts_of(const Checkpoint& checkpoint) {
  return {&checkpoint.config_json(), &checkpoint.tokenizer_json(), &checkpoint.tokenizer_config_json(),
          &checkpoint.chat_template(), &checkpoint.generation_config_json()};
}

std::optional<Manifest> manifest_in(const fs::path& folder) {
  const fs::path path = folder / kManifestFile;
  try {
    const MappedFile file(path);
    const auto bytes = file.bytes();
    return Manifest::parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
  } catch (const Error&) {
    return std::nullopt;
  }
}

// The files that a manifest stands for.
std::vector<std::string> files_of(const Manifest& manifest) {
  std::vector<std::string> names = manifest.texts;
  names.emplace_back(kManifestFile);
  if (manifest.format == Checkpoint::Format::gguf) names.emplace_back(kShardMetadataFile);
  for (int64_t rank = 0; rank < manifest.tp_degree; ++rank) names.push_back(shard_file_name(rank, manifest.tp_degree));
  return names;
}

// Makes the folder, if need be; files of an earlier run that this one does not replace are removed. Throws Error where
// other files are in the way.
void make_room(const fs::path& folder, const Manifest& manifest, bool overwrite) {
  std::error_code error;
  fs::create_directories(folder, error);
  require(fs::is_directory(folder, error), "shard: {} can't be made a folder", folder.string());
  const auto names = files_of(manifest);
  const auto earlier = manifest_in(folder);
  if (!earlier && !overwrite)
    for (const std::string& name : names)
      require(!fs::exists(folder / name, error), "shard: {} is in the way, and no earlier regard shard wrote it",
              (folder / name).string());
  // From here on the folder is known to be incomplete, until the manifest is written again.
  write_file(folder / kManifestFile, manifest.to_json());
  if (!earlier) return;
  for (const std::string& name : files_of(*earlier))
    if (std::ranges::find(names, name) == names.end()) fs::remove(folder / name, error);
}

// All tensors of one rank. Only cut columns and heads that are not neighbours take memory of their own.
SavedShard save_rank(const Checkpoint& checkpoint, const TensorCuts& cuts, const fs::path& path, int64_t rank,
                     Manifest& manifest) {
  std::vector<CutTensor> kept;
  std::vector<NamedTensor> tensors;
  Manifest::File& file = manifest.files[static_cast<size_t>(rank)];
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const auto cut = cuts.find(tensor.name);
    kept.push_back(cut == cuts.end() ? whole(tensor) : cut_tensor(tensor, cut->second));
    const Manifest::Entry entry{.name = tensor.name, .type = kept.back().type, .shape = kept.back().shape};
    const DType dtype = is_quantized(entry.type) ? DType::u8 : dtype_from_name(name_of(entry.type));
    tensors.push_back({.name = entry.name, .tensor = {kept.back().bytes.data(), dtype, stored_shape(entry)}});
    file.tensors.push_back(entry);
  }
  save_safetensors(
      path, tensors,
      {{"kind", kShardKind}, {"tp_degree", std::to_string(manifest.tp_degree)}, {"rank", std::to_string(rank)}});
  const MappedFile written(path);
  file.bytes = static_cast<int64_t>(written.bytes().size());
  file.checksum = checksum(written.bytes());
  return {.path = path, .bytes = file.bytes, .tensors = static_cast<int64_t>(tensors.size())};
}

Manifest manifest_of(const Checkpoint& checkpoint, const ModelSpec& spec, const ShardOptions& options) {
  const fs::path path = checkpoint.path().has_filename() ? checkpoint.path() : checkpoint.path().parent_path();
  Manifest manifest{.tp_degree = options.tp_degree,
                    .gqa = options.gqa,
                    .format = checkpoint.format(),
                    .family = spec.family,
                    .source = printable(path.filename().string()),
                    .texts = {},
                    .files = std::vector<Manifest::File>(static_cast<size_t>(options.tp_degree))};
  const auto texts = texts_of(checkpoint);
  for (size_t i = 0; i < texts.size(); ++i)
    if (!texts[i]->empty()) manifest.texts.emplace_back(kShardTexts[i]);
  return manifest;
}

}  // namespace

std::vector<SavedShard> save_shards(const Checkpoint& checkpoint, const fs::path& folder, const ShardOptions& options) {
  require(options.tp_degree >= 1 && options.tp_degree <= kMostShards, "shard: tp_degree is {}, expected 1 to {}",
          options.tp_degree, kMostShards);
  require(!checkpoint.shard(), "shard: {} is a shard already", checkpoint.path().string());
  const ModelSpec spec = ModelSpec::from(checkpoint);
  const TensorNames names = tensor_names_of(checkpoint);
  const auto cuts_of = [&](int64_t rank) {
    return shard_cuts(checkpoint, spec, names, {.tp_degree = options.tp_degree, .rank = rank, .gqa = options.gqa});
  };
  Manifest manifest = manifest_of(checkpoint, spec, options);
  // The first rank's cuts check all shapes before anything is written.
  (void)cuts_of(0);
  make_room(folder, manifest, options.overwrite);
  std::vector<SavedShard> saved;
  for (int64_t rank = 0; rank < options.tp_degree; ++rank) {
    saved.push_back(
        save_rank(checkpoint, cuts_of(rank), folder / shard_file_name(rank, options.tp_degree), rank, manifest));
  }
  if (manifest.format == Checkpoint::Format::gguf)
    write_file(folder / kShardMetadataFile, gguf_of(checkpoint.metadata()));
  const auto texts = texts_of(checkpoint);
  for (size_t i = 0; i < texts.size(); ++i)
    if (!texts[i]->empty()) write_file(folder / kShardTexts[i], *texts[i]);
  manifest.finished = true;
  write_file(folder / kManifestFile, manifest.to_json());
  return saved;
}

}  // namespace regard
