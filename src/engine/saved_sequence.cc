#include "regard/saved_sequence.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include "engine/stored_heads.h"
#include "parallel/same_values.h"
#include "regard/block_table.h"
#include "regard/checkpoint.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Fields = std::map<std::string, std::string>;

constexpr const char* kKind = "regard sequence";
constexpr const char* kVersion = "1";

std::string layer_name(size_t layer, std::string_view part) { return fmt::format("layers.{}.{}", layer, part); }

std::string_view name_of(KvScaling scaling) {
  constexpr std::array<std::string_view, 4> kNames = {"per_token", "per_tensor", "per_head", "per_channel"};
  return kNames[static_cast<size_t>(scaling)];
}

// What a layer of a file and the cache that takes it must have in common, beside given scales.
Fields fields_of(const KvCache& cache, const StoredHeads& heads) {
  return {{"key_dtype", std::string(name_of(cache.key_format().dtype))},
          {"key_scaling", std::string(name_of(cache.key_format().scaling))},
          {"value_dtype", std::string(name_of(cache.value_format().dtype))},
          {"value_scaling", std::string(name_of(cache.value_format().scaling))},
          {"kv_heads", std::to_string(heads.count())},
          {"head_dim", std::to_string(cache.head_dim())},
          {"v_head_dim", std::to_string(cache.v_head_dim())}};
}

// The tensors of a layer by their names in the file. Scales are left out where there are none.
std::vector<std::pair<std::string_view, Tensor>> tensors_of(const KvCache::StoredTokens& stored) {
  std::vector<std::pair<std::string_view, Tensor>> tensors = {{"keys", stored.keys}, {"values", stored.values}};
  if (stored.key_scales.shape().rank() > 0) tensors.emplace_back("key_scales", stored.key_scales);
  if (stored.value_scales.shape().rank() > 0) tensors.emplace_back("value_scales", stored.value_scales);
  return tensors;
}

std::array<std::pair<std::string_view, const std::vector<float>*>, 2> given_scales_of(const KvCache& cache) {
  return {{{"given_key_scales", &cache.key_format().scales}, {"given_value_scales", &cache.value_format().scales}}};
}

int64_t common_length(std::span<const KvCache> layers, int64_t slot) {
  require(!layers.empty(), "saved sequence: no layers are given");
  const int64_t length = layers[0].length(slot);
  require(length > 0, "saved sequence: slot {} holds no tokens", slot);
  for (size_t i = 0; i < layers.size(); ++i)
    require(layers[i].length(slot) == length, "saved sequence: slot {} holds {} tokens in layer {}, but {} in layer 0",
            slot, layers[i].length(slot), i, length);
  return length;
}

// A file that is to be restored. Whatever it holds, what is asked for is there and right, or Error says what is not.
class SavedFile {
 public:
  explicit SavedFile(const std::string& path) : path_(path), checkpoint_(Checkpoint::open(path)) {
    expect("kind", kKind);
    expect("version", kVersion);
  }

  void expect(const std::string& name, std::string_view expected) const {
    const std::string& value = field(name);
    require(value == expected, "saved sequence: {}: {} is \"{}\", expected \"{}\"", path_, name, printable(value),
            expected);
  }
  void expect_model(std::string_view expected) const {
    const std::string& value = field("model");
    require(value == expected, "saved sequence: {} belongs to another model: its digest is {}, expected {}", path_,
            printable(value), expected);
  }
  [[nodiscard]] int64_t number(const std::string& name, int64_t least, int64_t most) const {
    const std::string& text = field(name);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    require(error == std::errc() && end == text.data() + text.size() && value >= least && value <= most,
            "saved sequence: {}: {} is \"{}\", expected {} to {}", path_, name, printable(text), least, most);
    return value;
  }
  [[nodiscard]] ConstTensorView tensor(const std::string& name, DType dtype, const Shape& shape) const {
    const ConstTensorView view = checkpoint_.tensor(name).view();
    require(view.dtype() == dtype && view.shape() == shape,
            "saved sequence: {}: tensor {} has shape {} and dtype {}, expected {} and {}", path_, name, view.shape(),
            regard::name_of(view.dtype()), shape, regard::name_of(dtype));
    return view;
  }
  [[nodiscard]] std::vector<int32_t> tokens() const {
    const StoredTensor& stored = checkpoint_.tensor("tokens");
    require(stored.shape.rank() == 1, "saved sequence: {}: tensor tokens has shape {}, expected a list", path_,
            stored.shape);
    const auto ids = tensor("tokens", DType::i32, stored.shape).elements<int32_t>();
    for (const int32_t id : ids) require(id >= 0, "saved sequence: {}: tokens holds {}, expected ids", path_, id);
    return {ids.begin(), ids.end()};
  }
  void expect_scales(const std::string& name, const std::vector<float>& given) const {
    const bool there = checkpoint_.find(name) != nullptr;
    require(there != given.empty(), "saved sequence: {}: {} are {}, but the cache has {}", path_, name,
            there ? "there" : "missing", given.empty() ? "none" : "some");
    if (given.empty()) return;
    const auto stored = tensor(name, DType::f32, {static_cast<int64_t>(given.size())}).elements<float>();
    require(std::ranges::equal(stored, given), "saved sequence: {}: {} are not those of the cache", path_, name);
  }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string digest() const { return digest_of(checkpoint_); }
  void expect_tensors(size_t count) const {
    require(checkpoint_.tensors().size() == count, "saved sequence: {}: there are {} tensors, expected {}", path_,
            checkpoint_.tensors().size(), count);
  }

 private:
  [[nodiscard]] const std::string& field(const std::string& name) const {
    const auto found = checkpoint_.safetensors_metadata().find(name);
    require(found != checkpoint_.safetensors_metadata().end(), "saved sequence: {} has no {}", path_, name);
    return found->second;
  }

  std::string path_;
  Checkpoint checkpoint_;
};

// A layer's tokens from `first` on, in a file.
struct SavedLayer {
  int64_t first = 0;
  int64_t count = 0;
  ConstTensorView keys, values, key_scales, value_scales;

  [[nodiscard]] size_t tensors() const { return 2 + (key_scales.empty() ? 0 : 1) + (value_scales.empty() ? 0 : 1); }
};

SavedLayer find_layer(const SavedFile& file, size_t index, const KvCache& cache, const StoredHeads& heads, int64_t slot,
                      int64_t length) {
  const auto name = [&](std::string_view part) { return layer_name(index, part); };
  for (const auto& [part, expected] : fields_of(cache, heads)) file.expect(name(part), expected);
  for (const auto& [part, given] : given_scales_of(cache)) file.expect_scales(name(part), *given);
  // A cache that keeps all tokens can't lack the first ones.
  const int64_t last_first = cache.storage() == KvStorage::contiguous ? 0 : length;
  SavedLayer layer{.first = file.number(name("first_position"), 0, last_first)};
  layer.count = length - layer.first;
  // Nothing, read from the cache, tells the shapes and types of something.
  for (const auto& [part, sample] : tensors_of(cache.read_stored(slot, 0, 0))) {
    std::vector<int64_t> sizes(sample.shape().begin(), sample.shape().end());
    sizes[0] = layer.count;
    sizes[1] = heads.count();
    const ConstTensorView stored = file.tensor(name(part), sample.dtype(), Shape(sizes));
    (part == "keys"         ? layer.keys
     : part == "values"     ? layer.values
     : part == "key_scales" ? layer.key_scales
                            : layer.value_scales) = stored;
  }
  return layer;
}

std::vector<SavedLayer> find_layers(const SavedFile& file, std::span<const KvCache> layers,
                                    std::span<const StoredHeads> heads, int64_t slot, int64_t length) {
  std::vector<SavedLayer> found;
  size_t tensors = 1;  // the tokens
  for (size_t i = 0; i < layers.size(); ++i) {
    const KvCache& cache = layers[i];
    require(cache.length(slot) == 0,
            "saved sequence: slot {} of layer {} is in use with {} tokens, expected an empty one", slot, i,
            cache.length(slot));
    require(length <= cache.capacity(),
            "saved sequence: the sequence has {} tokens, but the capacity of layer {} is {}", length, i,
            cache.capacity());
    found.push_back(find_layer(file, i, cache, heads[i], slot, length));
    tensors += found.back().tensors();
    for (const auto& [part, given] : given_scales_of(cache)) tensors += given->empty() ? 0 : 1;
  }
  file.expect_tensors(tensors);
  return found;
}

// Where a cache begins to take a layer: with the page of what its last token sees, should that run again.
int64_t first_taken(const KvCache& cache, const SavedLayer& layer) {
  const int64_t seen = cache.first_seen(layer.first + layer.count - 1);
  return std::max(layer.first, seen - seen % cache.block_tables().page_size());
}

void restore_layer(KvCache& cache, const StoredHeads& heads, int64_t slot, const SavedLayer& layer) {
  const int64_t first = first_taken(cache, layer);
  const int64_t skipped = first - layer.first;
  cache.restore_stored(slot, first,
                       {.keys = heads.own_of(layer.keys, skipped),
                        .values = heads.own_of(layer.values, skipped),
                        .key_scales = heads.own_of(layer.key_scales, skipped),
                        .value_scales = heads.own_of(layer.value_scales, skipped)});
}

// Empties the layers that were restored before one failed.
struct Rollback {
  std::span<KvCache> layers;
  int64_t slot = 0;
  size_t done = 0;
  ~Rollback() {
    if (done == layers.size()) return;
    for (KvCache& cache : layers.first(done)) cache.truncate(slot, 0);
  }
};

std::vector<StoredHeads> heads_of(std::span<const KvCache> layers) {
  std::vector<StoredHeads> heads;
  for (const KvCache& cache : layers) heads.emplace_back(cache);
  return heads;
}

std::vector<StoredHeads> heads_of(const Model& model, std::span<const KvCache> layers) {
  if (model.ranks().size() == 1) return heads_of(layers);
  std::vector<StoredHeads> heads;
  for (size_t i = 0; i < layers.size(); ++i) {
    heads.emplace_back(model.attention(static_cast<int64_t>(i)));
    for (const auto& [part, given] : given_scales_of(layers[i]))
      require(given->empty(), "saved sequence: {} are given over {} ranks, expected caches that find their own",
              layer_name(i, part), model.ranks().size());
  }
  return heads;
}

// All layers on all ranks; rank 0 writes.
void save(const std::string& path, std::span<const KvCache> layers, std::span<const StoredHeads> heads, int64_t slot,
          std::span<const int32_t> tokens, std::string_view model, bool writes) {
  const int64_t length = common_length(layers, slot);
  const auto count = static_cast<int64_t>(tokens.size());
  require(count >= length, "saved sequence: {} tokens are given, but slot {} holds {}", count, slot, length);
  for (const int32_t id : tokens) require(id >= 0, "saved sequence: a token id is {}, expected 0 or more", id);
  Fields metadata = {{"kind", kKind},
                     {"version", kVersion},
                     {"layers", std::to_string(layers.size())},
                     {"length", std::to_string(length)}};
  if (!model.empty()) metadata["model"] = model;
  std::vector<NamedTensor> tensors = {{"tokens", ConstTensorView(tokens.data(), {count})}};
  std::vector<Tensor> owned;  // what the views of `tensors` show
  for (size_t i = 0; i < layers.size(); ++i) {
    const KvCache& cache = layers[i];
    const int64_t first = cache.first_held(slot);
    for (const auto& [part, value] : fields_of(cache, heads[i])) metadata[layer_name(i, part)] = value;
    metadata[layer_name(i, "first_position")] = std::to_string(first);
    for (const auto& [part, given] : given_scales_of(cache))
      if (!given->empty())
        tensors.push_back({layer_name(i, part), ConstTensorView(given->data(), {static_cast<int64_t>(given->size())})});
    for (const auto& [part, tensor] : tensors_of(cache.read_stored(slot, first, length - first)))
      tensors.push_back({layer_name(i, part), owned.emplace_back(heads[i].all_of(tensor))});
  }
  if (!writes) return;
  // Bytes come last, so that all numbers are aligned.
  std::stable_partition(tensors.begin(), tensors.end(),
                        [](const NamedTensor& named) { return named.tensor.dtype() != DType::u8; });
  save_safetensors(path, tensors, metadata);
}

std::vector<int32_t> restore(const SavedFile& file, std::span<KvCache> layers, std::span<const StoredHeads> heads,
                             int64_t slot, std::string_view model) {
  file.expect("layers", std::to_string(layers.size()));
  if (!model.empty()) file.expect_model(model);
  std::vector<int32_t> tokens = file.tokens();
  const int64_t length = file.number("length", 1, static_cast<int64_t>(tokens.size()));
  const auto saved = find_layers(file, layers, heads, slot, length);
  Rollback rollback{.layers = layers, .slot = slot};
  for (; rollback.done < layers.size(); ++rollback.done) {
    KvCache& cache = layers[rollback.done];
    try {
      restore_layer(cache, heads[rollback.done], slot, saved[rollback.done]);
    } catch (const Error& error) {
      fail("saved sequence: {}: layer {}, with {} free pages of {} tokens: {}", file.path(), rollback.done,
           cache.block_tables().free_pages(), cache.block_tables().page_size(), error.what());
    }
  }
  return tokens;
}

}  // namespace

void save_sequence(const std::string& path, std::span<const KvCache> layers, int64_t slot,
                   std::span<const int32_t> tokens, std::string_view model) {
  save(path, layers, heads_of(layers), slot, tokens, model, true);
}

void save_sequence(const std::string& path, const Model& model, std::span<const KvCache> layers, int64_t slot,
                   std::span<const int32_t> tokens, std::string_view digest) {
  save(path, layers, heads_of(model, layers), slot, tokens, digest, model.ranks().rank() == 0);
}

std::vector<int32_t> saved_tokens(const std::string& path) { return SavedFile(path).tokens(); }

std::vector<int32_t> restore_sequence(const std::string& path, std::span<KvCache> layers, int64_t slot,
                                      std::string_view model) {
  return restore(SavedFile(path), layers, heads_of(layers), slot, model);
}

std::vector<int32_t> restore_sequence(const std::string& path, const Model& model, std::span<KvCache> layers,
                                      int64_t slot, std::string_view digest) {
  const SavedFile file(path);
  const std::string own = file.digest();
  require_same_bytes(model.ranks().world(), fmt::format("the saved sequence {}", path), std::as_bytes(std::span(own)));
  return restore(file, layers, heads_of(model, layers), slot, digest);
}

}  // namespace regard
