#include <algorithm>
#include <array>
#include <utility>

#include "cache/kv_cache_state.h"

namespace regard {
namespace {

using kernels::kTile;
using kernels::PanelSide;

constexpr int64_t kMost = int64_t{1} << 31;
constexpr int64_t kMostWidth = int64_t{1} << 24;

void check_sizes(KvStorage storage, const KvCacheOptions& options, const Mask& mask) {
  require(options.slots >= 1 && options.slots <= kMost, "cache: slots is {}, expected 1 to {}", options.slots, kMost);
  require(options.capacity >= 1 && options.capacity <= kMost, "cache: capacity is {}, expected 1 to {}",
          options.capacity, kMost);
  constexpr std::array<int64_t, 5> kPageSizes = {16, 32, 64, 128, 256};
  require(std::ranges::find(kPageSizes, options.page_size) != kPageSizes.end(),
          "cache: page_size is {}, expected 16, 32, 64, 128 or 256", options.page_size);
  require(options.pages >= 0 && options.pages < kMost,
          "cache: pages is {}, expected 0 (all that slots can need) or more", options.pages);
  require(options.pages == 0 || storage == KvStorage::paged,
          "cache: pages is {}, but only a paged cache has a pool of a given size", options.pages);
  require(options.speculation_length >= 0 && options.speculation_length <= kMost,
          "cache: speculation_length is {}, expected 0 or more", options.speculation_length);
  require(storage != KvStorage::ring || mask.has_window(),
          "cache: a ring needs a layer with a window, but its mask is {}", mask.description());
  require(storage != KvStorage::chunk || mask.has_chunks(),
          "cache: a chunk cache needs a layer with chunks, but its mask is {}", mask.description());
}

// A contiguous slot's page: one, if it is short.
int64_t page_size_for(int64_t capacity) {
  int64_t size = kTile;
  while (size < std::min(capacity, kernels::kBlock)) size *= 2;
  return size;
}

KvSpec checked(const KvSpec& spec) {
  KvSpec filled = spec;
  if (filled.v_head_dim == 0) filled.v_head_dim = filled.head_dim;
  for (const auto& [name, value] : {std::pair{"num_key_value_heads", filled.num_key_value_heads},
                                    {"head_dim", filled.head_dim},
                                    {"v_head_dim", filled.v_head_dim}})
    require(value >= 1 && value <= kMostWidth, "cache: {} is {}, expected 1 to {}", name, value, kMostWidth);
  filled.mask.check("cache");
  return filled;
}

KvCacheOptions with_defaults(KvStorage storage, const KvCacheOptions& options, const Mask& mask) {
  KvCacheOptions filled = options;
  if (filled.page_size == 0)
    filled.page_size = storage == KvStorage::contiguous ? page_size_for(filled.capacity) : kDefaultPageSize;
  check_sizes(storage, filled, mask);
  return filled;
}

Retention retention_of(KvStorage storage, const KvCacheOptions& options, const Mask& mask) {
  return {.mask = mask,
          .all = storage == KvStorage::contiguous || !mask.reach(),
          .speculation = options.speculation_length};
}

// The most pages of a slot while it decodes, a draft at a time.
int64_t pages_of_slot(const KvCacheOptions& options, const Retention& retention) {
  const int64_t all = (options.capacity + options.page_size - 1) / options.page_size;
  // Where queries see later tokens, a whole call's come at once.
  if (retention.all || !retention.mask.is_causal) return all;
  const int64_t reach = std::min(retention.mask.reach().value_or(options.capacity), options.capacity);
  const int64_t tokens = std::min(reach + 2 * options.speculation_length, options.capacity);
  return std::min(all, (tokens + options.page_size - 2) / options.page_size + 1);
}

// Pages of all slots, and of what a call appends at once beyond that.
int64_t pages_of_pool(const KvCacheOptions& options, const Retention& retention) {
  if (options.pages > 0) return options.pages;
  const int64_t own = pages_of_slot(options, retention);
  int64_t spare = 0;
  if (!retention.all)
    spare = KvCache::kTokensAtOnce / options.page_size + std::min(options.slots, KvCache::kTokensAtOnce / 2);
  int64_t pages = 0;
  require(!__builtin_mul_overflow(options.slots, own, &pages) && pages + spare < kMost,
          "cache: {} slots of {} tokens are more than the address space holds", options.slots, options.capacity);
  return std::min(pages + spare, options.slots * ((options.capacity + options.page_size - 1) / options.page_size));
}

// Accepted tokens, from the first on, that lie where they belong.
int64_t staying_of(std::span<const int64_t> indices) {
  int64_t staying = 0;
  while (staying < std::ssize(indices) && indices[static_cast<size_t>(staying)] == staying) ++staying;
  return staying;
}

}  // namespace

KvStorage bounded_storage(const Mask& mask) {
  if (mask.has_window()) return KvStorage::ring;
  return mask.has_chunks() ? KvStorage::chunk : KvStorage::contiguous;
}

KvCache::KvCache(KvStorage storage, const KvCacheOptions& options, const KvSpec& spec) {
  const KvSpec layer = checked(spec);
  const KvCacheOptions filled = with_defaults(storage, options, layer.mask);
  const Retention retention = retention_of(storage, filled, layer.mask);
  const int64_t pages = pages_of_pool(filled, retention);
  const int64_t own = pages_of_slot(filled, retention);
  // A slot that keeps its pages for ever has all side by side; others at least as many as are read at once.
  const int64_t at_once = std::max<int64_t>(1, kernels::kBlock / filled.page_size);
  const int64_t stretch = storage == KvStorage::contiguous ? own : std::min(own, at_once);
  const auto store = [&](PanelSide side, const std::optional<KvFormat>& format, int64_t width) {
    return PageStore(
        side, format.value_or(KvFormat{.dtype = filled.dtype}),
        {.pages = pages, .page_tokens = filled.page_size, .kv_heads = layer.num_key_value_heads, .width = width});
  };
  state_ = std::make_unique<State>(State{.storage = storage,
                                         .options = filled,
                                         .retention = retention,
                                         .keys = store(PanelSide::keys, filled.keys, layer.head_dim),
                                         .values = store(PanelSide::values, filled.values, layer.v_head_dim),
                                         .pool = PagePool(pages, stretch),
                                         .slots = std::vector<Slot>(static_cast<size_t>(filled.slots)),
                                         .kv_heads = layer.num_key_value_heads,
                                         .head_dim = layer.head_dim,
                                         .v_head_dim = layer.v_head_dim,
                                         .notes = RehearsalNotes(pages, filled.slots)});
  state_->tables.state_ = state_.get();
  for (Slot& slot : state_->slots) {
    if (state_->fixed() || !retention.all) slot.table.reserve(static_cast<size_t>(own));
    if (state_->fixed()) state_->take_pages(slot, own);
  }
}

int64_t KvCache::pages_needed(const KvCacheOptions& options, const KvSpec& spec) {
  const Mask mask = checked(spec).mask;
  KvCacheOptions filled = with_defaults(KvStorage::paged, options, mask);
  filled.pages = 0;
  return pages_of_pool(filled, retention_of(KvStorage::paged, filled, mask));
}

KvCache KvCache::contiguous(const KvCacheOptions& options, const KvSpec& spec) {
  return {KvStorage::contiguous, options, spec};
}
KvCache KvCache::ring(const KvCacheOptions& options, const KvSpec& spec) { return {KvStorage::ring, options, spec}; }
KvCache KvCache::chunk(const KvCacheOptions& options, const KvSpec& spec) { return {KvStorage::chunk, options, spec}; }
KvCache KvCache::paged(const KvCacheOptions& options, const KvSpec& spec) { return {KvStorage::paged, options, spec}; }

KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

KvStorage KvCache::storage() const { return state_->storage; }
int64_t KvCache::slots() const { return state_->options.slots; }
int64_t KvCache::capacity() const { return state_->options.capacity; }
const KvFormat& KvCache::key_format() const { return state_->keys.format(); }
const KvFormat& KvCache::value_format() const { return state_->values.format(); }
int64_t KvCache::num_key_value_heads() const { return state_->kv_heads; }
int64_t KvCache::head_dim() const { return state_->head_dim; }
int64_t KvCache::v_head_dim() const { return state_->v_head_dim; }
int64_t KvCache::bytes_per_token() const { return state_->keys.bytes_per_token() + state_->values.bytes_per_token(); }
int64_t KvCache::length(int64_t slot) const { return state_->at(slot).length; }
int64_t KvCache::first_held(int64_t slot) const {
  const Slot& found = state_->at(slot);
  return std::min(found.first_page * state_->page_size(), found.length);
}

int64_t KvCache::first_seen(int64_t position) const { return state_->retention.first_seen(position); }

int64_t KvCache::first_kept(int64_t length) const {
  return state_->retention.first_needed(length) / state_->page_size() * state_->page_size();
}

void KvCache::check(std::span<const Span> spans, int64_t tokens_at_once) const { state_->check(spans, tokens_at_once); }

int64_t KvCache::missing_pages(std::span<const Span> spans, int64_t tokens_at_once) const {
  return state_->missing_pages(spans, tokens_at_once);
}

void KvCache::append(const Span& span, ConstTensorView keys, ConstTensorView values, const Threads& threads) {
  State& s = *state_;
  s.check({&span, 1}, std::max<int64_t>(1, span.count));
  const Shape key_shape{span.count, s.kv_heads, s.head_dim};
  const Shape value_shape{span.count, s.kv_heads, s.v_head_dim};
  require(keys.shape() == key_shape, "cache: keys have shape {}, expected {}", keys.shape(), key_shape);
  require(values.shape() == value_shape, "cache: values have shape {}, expected {}", values.shape(), value_shape);
  const float* key = keys.elements<float>().data();
  const float* value = values.elements<float>().data();
  if (span.slot == -1) return;
  Slot& slot = s.at(span.slot);
  s.make_room(slot, span.first_position, span.count);
  // A task is one head's part of a tile: its cache lines are written by one thread, one after the other.
  const int64_t first_tile = span.first_position / kTile;
  const int64_t tile_count = (span.first_position + span.count - 1) / kTile - first_tile + 1;
  const auto store = [&](int64_t task, int) {
    const int64_t head = task % s.kv_heads;
    const int64_t start = (first_tile + task / s.kv_heads) * kTile;
    const int64_t first = std::max(start, span.first_position);
    const int64_t count = std::min(start + kTile, span.first_position + span.count) - first;
    const int32_t page = slot.page(first / s.page_size());
    const auto rows = [&](const float* all, int64_t width) {
      return kernels::TokenRows{.data = all + ((first - span.first_position) * s.kv_heads + head) * width,
                                .stride = s.kv_heads * width,
                                .count = count,
                                .width = width};
    };
    s.keys.store(rows(key, s.head_dim), page, head, first % s.page_size());
    s.values.store(rows(value, s.v_head_dim), page, head, first % s.page_size());
  };
  threads.for_work(10 * span.count * s.kv_heads * (s.head_dim + s.v_head_dim)).for_each(tile_count * s.kv_heads, store);
  s.set_stored(slot, span.first_position, span.first_position + span.count);
}

void KvCache::trim(int64_t slot) {
  Slot& found = state_->at(slot);
  state_->drop_before(found, state_->retention.first_needed(found.length));
}

void KvCache::truncate(int64_t slot, int64_t length) {
  Slot& found = state_->at(slot);
  require(length >= 0 && length <= found.length, "cache: length is {}, but slot {} holds {} tokens", length, slot,
          found.length);
  state_->require_continues(slot, found.first_page, length);
  state_->drop_after(found, length);
}

void KvCache::check_accept(int64_t slot, int64_t first_position, std::span<const int64_t> indices) const {
  State& s = *state_;
  const Slot& found = s.at(slot);
  const auto count = static_cast<int64_t>(indices.size());
  s.require_stored(slot, first_position, 0);
  int64_t previous = -1;
  for (const int64_t index : indices) {
    require(index > previous && index < found.length - first_position,
            "cache: accepted index is {}, expected rising ones from 0 to {}", index, found.length - first_position - 1);
    previous = index;
  }
  s.require_continues(slot, found.first_page, first_position + count);
  // Accepted tokens that stay where they are may have left the window already.
  const int64_t staying = staying_of(indices);
  if (staying == count) return;
  s.require_stored(slot, first_position + staying, 1);
  const int64_t copies = s.shared_pages(found, first_position + staying, first_position + count);
  require(copies <= s.pool.free(), "cache: slot {} needs {} pages of its own to accept tokens, but {} are free", slot,
          copies, s.pool.free());
}

void KvCache::accept(int64_t slot, int64_t first_position, std::span<const int64_t> indices) {
  check_accept(slot, first_position, indices);
  State& s = *state_;
  Slot& found = s.at(slot);
  const auto count = static_cast<int64_t>(indices.size());
  const int64_t staying = staying_of(indices);
  if (staying < count) s.make_own(found, first_position + staying, first_position + count);
  for (int64_t i = staying; i < count; ++i)
    s.move_token(found, first_position + indices[static_cast<size_t>(i)], first_position + i);
  s.drop_after(found, first_position + count);
}

void KvCache::fork(int64_t from, int64_t to, int64_t length) {
  State& s = *state_;
  const Slot& source = s.at(from);
  Slot& target = s.empty_slot(to);
  require(length >= 0 && length <= source.length, "cache: {} tokens of slot {} are to be forked, but it holds {}",
          length, from, source.length);
  s.require_continues(from, source.first_page, length);
  const int64_t end = s.pages_of(length);
  if (s.fixed()) {
    for (int64_t page = 0; page < end; ++page) {
      s.keys.copy_page(source.page(page), target.page(page));
      s.values.copy_page(source.page(page), target.page(page));
    }
    return s.set_stored(target, 0, length);
  }
  target.first_page = std::min(source.first_page, end);
  for (int64_t page = target.first_page; page < end; ++page) {
    s.pool.retain(source.page(page));
    target.table.push_back(source.page(page));
  }
  target.length = length;
  s.drop_before(target, s.retention.first_needed(length));
}

std::pair<Tensor, Tensor> KvCache::read(int64_t slot, int64_t first, int64_t count) const {
  State& s = *state_;
  s.require_stored(slot, first, count);
  const Slot& found = s.at(slot);
  Tensor keys(DType::f32, {count, s.kv_heads, s.head_dim});
  Tensor values(DType::f32, {count, s.kv_heads, s.v_head_dim});
  float* key = keys.view().as<float>();
  float* value = values.view().as<float>();
  for (int64_t position = first; position < first + count; ++position)
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      const int32_t page = found.page(position / s.page_size());
      s.keys.load(page, head, position % s.page_size(), key);
      s.values.load(page, head, position % s.page_size(), value);
      key += s.head_dim;
      value += s.v_head_dim;
    }
  return {std::move(keys), std::move(values)};
}

BlockTables& KvCache::block_tables() { return state_->tables; }
const BlockTables& KvCache::block_tables() const { return state_->tables; }

kernels::KvPages KvCache::view(int64_t slot) const { return state_->view(state_->at(slot)); }

}  // namespace regard
