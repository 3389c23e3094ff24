#include "regard/model_cache.h"

#include <algorithm>

#include "cache/prefix_tree.h"
#include "regard/block_table.h"
#include "tensor/fail.h"

namespace regard {

struct ModelCache::State {
  std::vector<KvCache> layers;
  std::vector<KvCache*> trimmed;    // those that give pages back, after a commit
  std::vector<bool> open;           // by slot
  std::vector<int64_t> free_slots;  // the next one last
  std::optional<PrefixTree> tree;
  Stats stats;

  void require_open(int64_t slot) const {
    require(slot >= 0 && slot < static_cast<int64_t>(open.size()) && open[static_cast<size_t>(slot)],
            "model cache: no sequence is open in slot {}", slot);
  }
  // That every layer can go on after `length` tokens: so that none has changed when another one refuses.
  void require_continues(int64_t slot, int64_t length) const {
    const int64_t stored = layers[0].length(slot);
    require(length >= 0 && length <= stored, "model cache: length is {}, but slot {} holds {} tokens", length, slot,
            stored);
    for (size_t i = 0; i < layers.size(); ++i)
      require(length == 0 || layers[i].first_held(slot) <= layers[i].first_seen(length),
              "model cache: slot {} can't go back to {} tokens: layer {} only holds position {} and later", slot,
              length, i, layers[i].first_held(slot));
  }
  std::optional<int64_t> take_slot() {
    if (free_slots.empty()) return std::nullopt;
    const int64_t slot = free_slots.back();
    free_slots.pop_back();
    open[static_cast<size_t>(slot)] = true;
    return slot;
  }
  void give_slot(int64_t slot) {
    for (KvCache& layer : layers) layer.truncate(slot, 0);
    if (tree) tree->go_back(slot, 0);
    open[static_cast<size_t>(slot)] = false;
    free_slots.push_back(slot);
  }
  // Fills the slot of a new sequence, or gives it back where that can't be.
  template <class Work>
  void fill_slot(int64_t slot, Work&& work) {
    try {
      work();
    } catch (...) {
      give_slot(slot);
      throw;
    }
  }
  [[nodiscard]] int64_t pages_in_use(const KvCache& layer) const {
    return layer.block_tables().pages() - layer.block_tables().free_pages();
  }
  [[nodiscard]] const KvCache& fullest() const {
    return *std::ranges::max_element(layers, {}, [&](const KvCache& layer) {
      return static_cast<double>(pages_in_use(layer)) / static_cast<double>(layer.block_tables().pages());
    });
  }
};

ModelCache::ModelCache(std::vector<KvCache> layers, bool prefixes) : state_(std::make_unique<State>()) {
  require(!layers.empty(), "model cache: no layers are given");
  const KvCache& first = layers.front();
  for (size_t i = 0; i < layers.size(); ++i) {
    const KvCache& layer = layers[i];
    require(layer.slots() == first.slots() && layer.capacity() == first.capacity(),
            "model cache: layer {} has {} slots of {} tokens, but layer 0 has {} of {}", i, layer.slots(),
            layer.capacity(), first.slots(), first.capacity());
    require(!prefixes || layer.storage() == KvStorage::paged,
            "model cache: prefixes are to be shared, but layer {} is not paged", i);
    require(!prefixes || layer.block_tables().page_size() == first.block_tables().page_size(),
            "model cache: layer {} has pages of {} tokens, but layer 0 of {}", i, layer.block_tables().page_size(),
            first.block_tables().page_size());
  }
  State& s = *state_;
  s.layers = std::move(layers);
  s.open.resize(static_cast<size_t>(s.layers[0].slots()));
  for (int64_t slot = s.layers[0].slots() - 1; slot >= 0; --slot) s.free_slots.push_back(slot);
  if (prefixes) s.tree.emplace(s.layers);
  for (KvCache& layer : s.layers)
    if (prefixes && layer.first_seen(layer.capacity()) > 0) {
      layer.block_tables().leave_trim_to_owner();
      s.trimmed.push_back(&layer);
    }
}

ModelCache::ModelCache(ModelCache&&) noexcept = default;
ModelCache& ModelCache::operator=(ModelCache&&) noexcept = default;
ModelCache::~ModelCache() = default;

std::span<KvCache> ModelCache::layers() { return state_->layers; }
int64_t ModelCache::slots() const { return state_->layers[0].slots(); }
int64_t ModelCache::capacity() const { return state_->layers[0].capacity(); }
int64_t ModelCache::free_slots() const { return static_cast<int64_t>(state_->free_slots.size()); }

int64_t ModelCache::length(int64_t slot) const {
  state_->require_open(slot);
  return state_->layers[0].length(slot);
}

std::optional<ModelCache::Opened> ModelCache::open(std::span<const int32_t> tokens, uint64_t salt) {
  State& s = *state_;
  const std::optional<int64_t> slot = s.take_slot();
  if (!slot) return std::nullopt;
  Opened opened{.slot = *slot, .length = 0};
  s.fill_slot(*slot, [&] {
    if (s.tree) opened.length = s.tree->open(*slot, tokens.first(tokens.empty() ? 0 : tokens.size() - 1), salt);
  });
  s.stats.asked_tokens += static_cast<int64_t>(tokens.size());
  s.stats.shared_tokens += opened.length;
  return opened;
}

void ModelCache::close(int64_t slot) {
  State& s = *state_;
  s.require_open(slot);
  s.give_slot(slot);
}

std::optional<int64_t> ModelCache::fork(int64_t slot, int64_t length) {
  State& s = *state_;
  s.require_open(slot);
  s.require_continues(slot, length);
  const std::optional<int64_t> to = s.take_slot();
  if (!to) return std::nullopt;
  s.fill_slot(*to, [&] {
    for (KvCache& layer : s.layers) layer.fork(slot, *to, length);
    if (s.tree) s.tree->fork(slot, *to, length);
  });
  return to;
}

void ModelCache::truncate(int64_t slot, int64_t length) {
  State& s = *state_;
  s.require_open(slot);
  s.require_continues(slot, length);
  for (KvCache& layer : s.layers) layer.truncate(slot, length);
  if (s.tree) s.tree->go_back(slot, length);
}

void ModelCache::accept(int64_t slot, int64_t first_position, std::span<const int64_t> indices) {
  State& s = *state_;
  s.require_open(slot);
  for (const KvCache& layer : s.layers) layer.check_accept(slot, first_position, indices);
  for (KvCache& layer : s.layers) layer.accept(slot, first_position, indices);
  if (s.tree) s.tree->go_back(slot, first_position);
}

void ModelCache::commit(int64_t slot, std::span<const int32_t> tokens) {
  State& s = *state_;
  s.require_open(slot);
  const int64_t stored = s.layers[0].length(slot);
  for (size_t i = 0; i < s.layers.size(); ++i)
    require(s.layers[i].length(slot) == stored, "model cache: slot {} holds {} tokens in layer {}, but {} in layer 0",
            slot, s.layers[i].length(slot), i, stored);
  require(static_cast<int64_t>(tokens.size()) >= stored, "model cache: {} tokens are committed, but slot {} holds {}",
          tokens.size(), slot, stored);
  if (s.tree && s.tree->pages_of(slot) != stored / s.layers[0].block_tables().page_size())
    s.tree->insert(slot, tokens.first(static_cast<size_t>(stored)));
  for (KvCache* layer : s.trimmed) layer->trim(slot);
}

bool ModelCache::make_room(std::span<const Span> spans, int64_t tokens_at_once) {
  State& s = *state_;
  for (size_t i = 0; i < s.layers.size(); ++i) {
    const int64_t missing = s.layers[i].missing_pages(spans, tokens_at_once);
    if (missing > 0 && (!s.tree || s.tree->evict(i, missing) < missing)) return false;
  }
  return true;
}

ModelCache::Stats ModelCache::stats() const {
  Stats stats = state_->stats;
  stats.pages = state_->fullest().block_tables().pages();
  stats.pages_in_use = state_->pages_in_use(state_->fullest());
  if (state_->tree) {
    stats.cached_pages = state_->tree->pages();
    stats.evicted_pages = state_->tree->evicted();
  }
  return stats;
}

}  // namespace regard
