#include <algorithm>
#include <array>
#include <bit>

#include "cache/page_pool.h"
#include "cache/page_store.h"
#include "regard/cache.h"
#include "regard/mask.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using kernels::kTile;
using kernels::PanelSide;

constexpr int64_t kMost = int64_t{1} << 31;

// What a later token may still see.
struct Retention {
  Mask mask;
  bool all = true;
  int64_t speculation = 0;  // tokens that may be taken back

  // The first position that the token at `position` sees.
  [[nodiscard]] int64_t first_seen(int64_t position) const {
    return all ? 0 : mask.visible(position, position + 1).first;
  }
  // The first position that some token after `length` tokens sees, even if the last ones are taken back.
  [[nodiscard]] int64_t first_needed(int64_t length) const {
    return first_seen(std::max<int64_t>(0, length - speculation));
  }
};

// The pages that a sequence of one slot lies in.
struct Slot {
  std::vector<int32_t> table;  // of the pages first_page, first_page + 1, ...
  int64_t first_page = 0;
  int64_t length = 0;
  uint64_t last_check = 0;  // the check that met this slot last

  [[nodiscard]] int64_t end_page() const { return first_page + static_cast<int64_t>(table.size()); }
  [[nodiscard]] int32_t& page(int64_t index) { return table[static_cast<size_t>(index - first_page)]; }
  [[nodiscard]] int32_t page(int64_t index) const { return table[static_cast<size_t>(index - first_page)]; }
};

// Pages first..end-1 of a sequence in a rehearsal: those before old_end are the slot's, but for the one of which it
// took a copy.
struct PageRange {
  int64_t first = 0;
  int64_t end = 0;
  int64_t old_end = 0;
  int64_t copied = -1;
};

// What a rehearsal notes; kept for the next one, so that steady calls allocate nothing.
struct RehearsalNotes {
  std::vector<PageRange> held;      // by each span's slot
  std::vector<int32_t> given_back;  // how many have let go of each page of the pool
  std::vector<int32_t> touched;     // the pages of which somebody has
};

void check_sizes(KvStorage storage, const KvCacheOptions& options, const AttentionConfig& config) {
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
  require(storage != KvStorage::ring || config.sliding_window > 0,
          "cache: a ring needs a layer with a window, but sliding_window is 0");
  require(storage != KvStorage::chunk || config.attention_chunk_size > 0,
          "cache: a chunk cache needs a layer with chunks, but attention_chunk_size is 0");
}

// A contiguous slot's page: one, if it is short.
int64_t page_size_for(int64_t capacity) {
  int64_t size = kTile;
  while (size < std::min(capacity, kernels::kBlock)) size *= 2;
  return size;
}

}  // namespace

struct KvCache::State {
  KvStorage storage;
  KvCacheOptions options;
  Retention retention;
  PageStore keys;
  PageStore values;
  PagePool pool;
  std::vector<Slot> slots;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  uint64_t checks = 0;  // made so far
  RehearsalNotes notes;

  [[nodiscard]] int64_t page_size() const { return options.page_size; }
  [[nodiscard]] int64_t pages_of(int64_t tokens) const { return (tokens + page_size() - 1) / page_size(); }
  // Whether each slot keeps the same pages for ever.
  [[nodiscard]] bool fixed() const { return storage == KvStorage::contiguous; }

  [[nodiscard]] Slot& at(int64_t slot) {
    require(slot >= 0 && slot < options.slots, "cache: slot is {}, expected 0 to {}", slot, options.slots - 1);
    return slots[static_cast<size_t>(slot)];
  }
  [[nodiscard]] Slot& empty_slot(int64_t slot) {
    Slot& found = at(slot);
    require(found.length == 0 && (fixed() || found.table.empty()),
            "cache: slot {} is in use with {} tokens, expected an empty one; truncate it to 0 first", slot,
            found.length);
    return found;
  }
  void require_pool(const char* what) const {
    require(!fixed(), "cache: {} needs pages from a pool, but the slots of a contiguous cache have their own", what);
  }
  void require_page(int32_t page) const {
    require(page >= 0 && page < pool.size(), "cache: page is {}, expected 0 to {}", page, pool.size() - 1);
  }
  void require_held_page(int32_t page) const {
    require_page(page);
    require(pool.holders(page) > 0, "cache: page {} is free, expected one in use", page);
  }
  void require_different(std::span<const int32_t> pages) const {
    std::vector<int32_t> sorted(pages.begin(), pages.end());
    std::ranges::sort(sorted);
    for (size_t i = 1; i < sorted.size(); ++i)
      require(sorted[i] < 0 || sorted[i] != sorted[i - 1], "cache: page {} is named twice", sorted[i]);
  }
  void require_stored(int64_t slot, int64_t first, int64_t count) {
    const Slot& found = at(slot);
    require(first >= 0 && count >= 0 && first <= found.length && count <= found.length - first,
            "cache: {} tokens from position {} of slot {} are asked for, but it holds {}", count, first, slot,
            found.length);
    require(count == 0 || first >= found.first_page * page_size(),
            "cache: position {} of slot {} was given back, expected {} or more", first, slot,
            found.first_page * page_size());
  }
  // That a sequence of `length` tokens held from page first_page on can go on.
  void require_continues(int64_t slot, int64_t first_page, int64_t length) const {
    const int64_t needed = retention.first_seen(length);
    require(first_page * page_size() <= needed || length == 0,
            "cache: slot {} can't go on from position {}: that token sees position {}, but only {} and later are held",
            slot, length, needed, first_page * page_size());
  }

  void check_span(const Span& span) {
    require(span.slot == -1 || (span.slot >= 0 && span.slot < options.slots),
            "cache: slot is {}, expected -1 (none) or 0 to {}", span.slot, options.slots - 1);
    require(span.count >= 1, "cache: span of slot {} has count {}, expected 1 or more", span.slot, span.count);
    if (span.slot == -1) return;
    Slot& slot = at(span.slot);
    require(span.first_position >= 0 && span.first_position <= slot.length,
            "cache: first_position is {}, but slot {} holds {} tokens; expected 0 to {}", span.first_position,
            span.slot, slot.length, slot.length);
    require(span.count <= options.capacity - span.first_position,
            "cache: slot {} would hold {} tokens from position {} on, but its capacity is {}", span.slot, span.count,
            span.first_position, options.capacity);
    require_continues(span.slot, slot.first_page, span.first_position);
    require(slot.last_check != checks, "cache: slot {} comes twice in one call, expected one span a slot", span.slot);
    slot.last_check = checks;
  }

  int64_t missing_pages(std::span<const Span> spans, int64_t tokens_at_once);
  void check(std::span<const Span> spans, int64_t tokens_at_once) {
    const int64_t missing = missing_pages(spans, tokens_at_once);
    require(missing == 0, "cache: {} more free pages of {} tokens are needed; {} of {} are free", missing, page_size(),
            pool.free(), pool.size());
  }

  // ---- Changes, which only happen once everything was checked ----

  void release_pages(Slot& slot, int64_t first, int64_t end) {
    for (int64_t page = first; page < end; ++page) pool.release(slot.page(page));
  }
  void drop_after(Slot& slot, int64_t length) {
    slot.length = length;
    if (fixed()) return;
    const int64_t end = std::max(slot.first_page, pages_of(length));
    if (end < slot.end_page()) {
      release_pages(slot, end, slot.end_page());
      slot.table.resize(static_cast<size_t>(end - slot.first_page));
    }
    if (length == 0) slot.first_page = 0;
  }
  void drop_before(Slot& slot, int64_t position) {
    if (retention.all) return;
    const int64_t page = std::min(position / page_size(), slot.end_page());
    if (page <= slot.first_page) return;
    release_pages(slot, slot.first_page, page);
    slot.table.erase(slot.table.begin(), slot.table.begin() + (page - slot.first_page));
    slot.first_page = page;
  }
  // Whoever writes to a page that others hold too gets a copy.
  void make_own(int32_t& page) {
    if (pool.holders(page) == 1) return;
    const int32_t copy = pool.take();
    keys.copy_page(page, copy);
    values.copy_page(page, copy);
    pool.set_written(copy, pool.written(page));
    pool.release(page);
    page = copy;
  }
  // Pages for tokens first..first+count-1, which follow what the slot holds.
  void make_room(Slot& slot, int64_t first, int64_t count) {
    if (first < slot.length) drop_after(slot, first);
    drop_before(slot, retention.first_needed(first));
    if (slot.table.empty()) slot.first_page = first / page_size();
    const int64_t page = first / page_size();
    if (first % page_size() != 0 && page < slot.end_page()) make_own(slot.page(page));
    while (slot.end_page() < pages_of(first + count)) slot.table.push_back(pool.take());
  }
  // Notes that a slot's tokens up to `length` are stored, those from `first` on newly.
  void set_stored(Slot& slot, int64_t first, int64_t length) {
    for (int64_t page = first / page_size(); page < pages_of(length); ++page)
      pool.set_written(slot.page(page), std::min(page_size(), length - page * page_size()));
    slot.length = length;
  }

  [[nodiscard]] kernels::KvPages view(const Slot& slot) const {
    return {.keys = keys.view(),
            .values = values.view(),
            .page_tokens = page_size(),
            .page_shift = std::countr_zero(static_cast<uint64_t>(page_size())),
            .table = slot.table.data(),
            .first_page = slot.first_page,
            .page_count = static_cast<int64_t>(slot.table.size())};
  }
};

namespace {

// Counts free pages while spans are appended piece by piece, each piece followed by a trim, without doing so.
class Rehearsal {
 public:
  Rehearsal(const Retention& retention, const PagePool& pool, int64_t page_size, std::span<const Span> spans,
            RehearsalNotes& notes)
      : retention_(retention), pool_(pool), page_size_(page_size), spans_(spans), free_(pool.free()), notes_(notes) {
    notes_.held.resize(spans.size());
    notes_.given_back.resize(static_cast<size_t>(pool.size()));
    notes_.touched.reserve(static_cast<size_t>(pool.size()));
  }
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;
  ~Rehearsal() {
    for (const int32_t page : notes_.touched) given_back(page) = 0;
    notes_.touched.clear();
  }

  // How many pages are missing at most.
  int64_t missing(std::span<const Slot> slots, int64_t tokens_at_once) {
    Cursor begin;
    while (begin.span < spans_.size()) {
      const Cursor end = append_piece(slots, begin, tokens_at_once);
      trim_piece(slots, begin, end);
      begin = end;
    }
    return std::max<int64_t>(0, -least_);
  }

 private:
  // Tokens before: whole spans, and some of the next one's.
  struct Cursor {
    size_t span = 0;
    int64_t tokens = 0;
  };
  Cursor append_piece(std::span<const Slot> slots, Cursor at, int64_t room) {
    while (at.span < spans_.size() && room > 0) {
      const Span& span = spans_[at.span];
      const int64_t count = std::min(room, span.count - at.tokens);
      if (span.slot != -1) {
        PageRange& pages = notes_.held[at.span];
        const Slot& slot = slots[static_cast<size_t>(span.slot)];
        if (at.tokens == 0) pages = begin(slot, span);
        append(pages, span.first_position + at.tokens + count);
      }
      room -= count;
      at.tokens += count;
      if (at.tokens == span.count) at = {.span = at.span + 1, .tokens = 0};
    }
    return at;
  }

  void trim_piece(std::span<const Slot> slots, Cursor begin, Cursor end) {
    const size_t last = end.tokens > 0 ? end.span + 1 : end.span;
    for (size_t i = begin.span; i < last; ++i) {
      const Span& span = spans_[i];
      const int64_t tokens = i == end.span ? end.tokens : span.count;
      if (span.slot != -1)
        trim(slots[static_cast<size_t>(span.slot)], notes_.held[i],
             retention_.first_needed(span.first_position + tokens));
    }
  }

  // What the slot holds once it is ready for the span's first token.
  PageRange begin(const Slot& slot, const Span& span) {
    PageRange pages{.first = slot.first_page, .end = slot.end_page(), .old_end = slot.end_page()};
    const int64_t page = span.first_position / page_size_;
    const bool inside_page = span.first_position % page_size_ != 0;
    if (span.first_position < slot.length) {
      const int64_t end = std::clamp(page + (inside_page ? 1 : 0), pages.first, pages.end);
      give_back(slot, pages, end, pages.end);
      pages.end = pages.old_end = end;
    }
    trim(slot, pages, retention_.first_needed(span.first_position));
    if (pages.first == pages.end) pages = {.first = page, .end = page, .old_end = page};
    if (inside_page && page < pages.end && holders(slot.page(page)) > 1) {
      --free_;
      let_go(slot.page(page));
      pages.copied = page;
    }
    return pages;
  }
  void append(PageRange& pages, int64_t end_position) {
    const int64_t end = std::max(pages.end, (end_position + page_size_ - 1) / page_size_);
    free_ -= end - pages.end;
    pages.end = end;
    least_ = std::min(least_, free_);
  }
  void trim(const Slot& slot, PageRange& pages, int64_t position) {
    if (retention_.all) return;
    const int64_t page = std::clamp(position / page_size_, pages.first, pages.end);
    give_back(slot, pages, pages.first, page);
    pages.first = page;
  }
  void give_back(const Slot& slot, const PageRange& pages, int64_t first, int64_t end) {
    for (int64_t page = first; page < end; ++page) {
      if (page < pages.old_end && page != pages.copied)
        let_go(slot.page(page));
      else
        ++free_;
    }
  }
  // A page is free when the last who holds it has let go.
  void let_go(int32_t page) {
    if (given_back(page)++ == 0) notes_.touched.push_back(page);
    if (holders(page) == 0) ++free_;
  }
  [[nodiscard]] int64_t holders(int32_t page) { return pool_.holders(page) - given_back(page); }
  [[nodiscard]] int32_t& given_back(int32_t page) { return notes_.given_back[static_cast<size_t>(page)]; }

  const Retention& retention_;
  const PagePool& pool_;
  int64_t page_size_;
  std::span<const Span> spans_;
  int64_t free_;
  int64_t least_ = 0;  // that free_ came to
  RehearsalNotes& notes_;
};

// The most pages of a slot while it decodes, a draft at a time.
int64_t pages_of_slot(const KvCacheOptions& options, const Retention& retention) {
  const int64_t all = (options.capacity + options.page_size - 1) / options.page_size;
  if (retention.all) return all;
  const auto& mask = retention.mask;
  int64_t reach = options.capacity;
  if (mask.sliding_window > 0) reach = std::min(reach, mask.sliding_window);
  if (mask.attention_chunk_size > 0) reach = std::min(reach, mask.attention_chunk_size);
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

}  // namespace

int64_t KvCache::State::missing_pages(std::span<const Span> spans, int64_t tokens_at_once) {
  require(tokens_at_once >= 1, "cache: tokens_at_once is {}, expected 1 or more", tokens_at_once);
  ++checks;
  for (const Span& span : spans) check_span(span);
  if (fixed()) return 0;
  return Rehearsal(retention, pool, page_size(), spans, notes).missing(slots, tokens_at_once);
}

KvCache::KvCache(KvStorage storage, const KvCacheOptions& options, const AttentionConfig& config) {
  const AttentionConfig layer = config.validated();
  KvCacheOptions filled = options;
  if (filled.slots == 0) filled.slots = layer.inference.kv_cache_batch_size;
  if (filled.capacity == 0) filled.capacity = layer.inference.max_length;
  if (!filled.dtype) filled.dtype = layer.inference.attention_dtype;
  if (filled.page_size == 0) filled.page_size = storage == KvStorage::contiguous ? page_size_for(filled.capacity) : 32;
  check_sizes(storage, filled, layer);
  const Mask mask = Mask::of(layer);
  const bool has_reach = mask.sliding_window > 0 || mask.attention_chunk_size > 0;
  const Retention retention{
      .mask = mask, .all = storage == KvStorage::contiguous || !has_reach, .speculation = filled.speculation_length};
  const int64_t pages = pages_of_pool(filled, retention);
  const auto store = [&](PanelSide side, const std::optional<KvFormat>& format, int64_t width) {
    return PageStore(
        side, format.value_or(KvFormat{.dtype = *filled.dtype}),
        {.pages = pages, .page_tokens = filled.page_size, .kv_heads = layer.num_key_value_heads, .width = width});
  };
  state_ = std::make_unique<State>(State{.storage = storage,
                                         .options = filled,
                                         .retention = retention,
                                         .keys = store(PanelSide::keys, filled.keys, layer.head_dim),
                                         .values = store(PanelSide::values, filled.values, layer.v_head_dim),
                                         .pool = PagePool(pages),
                                         .slots = std::vector<Slot>(static_cast<size_t>(filled.slots)),
                                         .kv_heads = layer.num_key_value_heads,
                                         .head_dim = layer.head_dim,
                                         .v_head_dim = layer.v_head_dim});
  const int64_t own = pages_of_slot(filled, retention);
  for (Slot& slot : state_->slots) {
    if (state_->fixed() || !retention.all) slot.table.reserve(static_cast<size_t>(own));
    if (state_->fixed())
      for (int64_t i = 0; i < own; ++i) slot.table.push_back(state_->pool.take());
  }
}

KvCache KvCache::contiguous(const KvCacheOptions& options, const AttentionConfig& config) {
  return {KvStorage::contiguous, options, config};
}
KvCache KvCache::ring(const KvCacheOptions& options, const AttentionConfig& config) {
  return {KvStorage::ring, options, config};
}
KvCache KvCache::chunk(const KvCacheOptions& options, const AttentionConfig& config) {
  return {KvStorage::chunk, options, config};
}
KvCache KvCache::paged(const KvCacheOptions& options, const AttentionConfig& config) {
  return {KvStorage::paged, options, config};
}

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

void KvCache::accept(int64_t slot, int64_t first_position, std::span<const int64_t> indices) {
  State& s = *state_;
  Slot& found = s.at(slot);
  const auto count = static_cast<int64_t>(indices.size());
  s.require_stored(slot, first_position, 0);
  int64_t previous = -1;
  for (const int64_t index : indices) {
    require(index > previous && index < found.length - first_position,
            "cache: accepted index is {}, expected rising ones from 0 to {}", index, found.length - first_position - 1);
    previous = index;
  }
  s.require_continues(slot, found.first_page, first_position + count);
  int64_t moved = 0;
  while (moved < count && indices[static_cast<size_t>(moved)] == moved) ++moved;
  // Accepted tokens that stay where they are may have left the window already.
  if (moved < count) s.require_stored(slot, first_position + moved, 1);
  const int64_t first_page = (first_position + moved) / s.page_size();
  const int64_t end_page = s.pages_of(first_position + count);
  int64_t copies = 0;
  if (moved < count)
    for (int64_t page = first_page; page < end_page; ++page) copies += s.pool.holders(found.page(page)) > 1 ? 1 : 0;
  require(copies <= s.pool.free(), "cache: slot {} needs {} pages of its own to accept tokens, but {} are free", slot,
          copies, s.pool.free());
  if (moved < count)
    for (int64_t page = first_page; page < end_page; ++page) s.make_own(found.page(page));
  for (int64_t i = moved; i < count; ++i) {
    const int64_t from = first_position + indices[static_cast<size_t>(i)];
    const int64_t to = first_position + i;
    for (PageStore* store : {&s.keys, &s.values})
      store->copy_token(found.page(from / s.page_size()), from % s.page_size(), found.page(to / s.page_size()),
                        to % s.page_size());
  }
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

namespace {

// Rows of a tensor [count, heads, ...], one after the other.
template <class Element>
Element* row_of(const Tensor& tensor, int64_t row, int64_t row_elements) {
  return tensor.empty() ? nullptr : tensor.view().as<Element>() + row * row_elements;
}

}  // namespace

KvCache::StoredTokens KvCache::read_stored(int64_t slot, int64_t first, int64_t count) const {
  State& s = *state_;
  s.require_stored(slot, first, count);
  const Slot& found = s.at(slot);
  const auto read = [&](const PageStore& store, Tensor& rows, Tensor& scales) {
    rows = Tensor(DType::u8, {count, s.kv_heads, store.bytes_of_row()});
    if (store.has_scales()) scales = Tensor(DType::f32, {count, s.kv_heads});
    for (int64_t i = 0; i < count * s.kv_heads; ++i) {
      const int64_t position = first + i / s.kv_heads;
      store.load_stored(found.page(position / s.page_size()), i % s.kv_heads, position % s.page_size(),
                        reinterpret_cast<std::byte*>(row_of<uint8_t>(rows, i, store.bytes_of_row())),
                        row_of<float>(scales, i, 1));
    }
  };
  StoredTokens tokens;
  read(s.keys, tokens.keys, tokens.key_scales);
  read(s.values, tokens.values, tokens.value_scales);
  return tokens;
}

void KvCache::restore_stored(int64_t slot, int64_t first, const StoredTokens& tokens) {
  State& s = *state_;
  Slot& found = s.empty_slot(slot);
  const int64_t count = tokens.keys.empty() ? 0 : tokens.keys.shape()[0];
  const auto check = [&](const char* name, const PageStore& store, const Tensor& rows, const Tensor& scales) {
    const Shape row_shape{count, s.kv_heads, store.bytes_of_row()};
    require(rows.dtype() == DType::u8 && rows.shape() == row_shape,
            "cache: stored {} have shape {} and dtype {}, expected {} and u8", name, rows.shape(),
            name_of(rows.dtype()), row_shape);
    const Shape scale_shape{count, s.kv_heads};
    require(store.has_scales() ? scales.shape() == scale_shape && scales.dtype() == DType::f32 : scales.empty(),
            "cache: scales of stored {} have shape {}, expected {}", name, scales.shape(),
            store.has_scales() ? scale_shape.to_string() : "none");
  };
  // At the start of a chunk nothing is held, and nothing needed.
  require(count > 0 || (first > 0 && first % s.page_size() == 0),
          "cache: no stored tokens are given, and position {} is no start of a page", first);
  if (count > 0) {
    check("keys", s.keys, tokens.keys, tokens.key_scales);
    check("values", s.values, tokens.values, tokens.value_scales);
  }
  require(first >= 0 && count <= s.options.capacity - first,
          "cache: slot {} would hold {} tokens from position {} on, but its capacity is {}", slot, count, first,
          s.options.capacity);
  // A page of which only the end is given is not held: its beginning is somebody else's old tokens.
  const int64_t first_page = s.pages_of(first);
  const int64_t end_page = s.pages_of(first + count);
  s.require_continues(slot, first_page, first + count);
  require(s.fixed() || end_page - first_page <= s.pool.free(), "cache: {} pages are needed, but {} are free",
          end_page - first_page, s.pool.free());
  if (!s.fixed()) {
    found.first_page = first_page;
    while (found.end_page() < end_page) found.table.push_back(s.pool.take());
  }
  const int64_t skipped = std::min(count, first_page * s.page_size() - first);
  const auto write = [&](PageStore& store, const Tensor& rows, const Tensor& scales) {
    for (int64_t i = skipped * s.kv_heads; i < count * s.kv_heads; ++i) {
      const int64_t position = first + i / s.kv_heads;
      store.store_stored(reinterpret_cast<const std::byte*>(row_of<uint8_t>(rows, i, store.bytes_of_row())),
                         row_of<float>(scales, i, 1), found.page(position / s.page_size()), i % s.kv_heads,
                         position % s.page_size());
    }
  };
  write(s.keys, tokens.keys, tokens.key_scales);
  write(s.values, tokens.values, tokens.value_scales);
  s.set_stored(found, first + skipped, first + count);
}

int64_t KvCache::page_size() const { return state_->page_size(); }
int64_t KvCache::pages() const { return state_->pool.size(); }
int64_t KvCache::free_pages() const { return state_->pool.free(); }

std::vector<int32_t> KvCache::page_table(int64_t slot) const {
  const Slot& found = state_->at(slot);
  std::vector<int32_t> pages(static_cast<size_t>(found.first_page), -1);
  pages.insert(pages.end(), found.table.begin(), found.table.end());
  pages.resize(static_cast<size_t>(state_->pages_of(found.length)));
  return pages;
}

int32_t KvCache::page_of(int64_t slot, int64_t index) const {
  const Slot& found = state_->at(slot);
  const int64_t pages = state_->pages_of(found.length);
  require(index >= 0 && index < pages, "cache: slot {} has {} pages, but number {} is asked for", slot, pages, index);
  return index < found.first_page ? -1 : found.page(index);
}

int64_t KvCache::index_of(int64_t slot, int64_t position) const {
  state_->require_stored(slot, position, 1);
  const int64_t page_size = state_->page_size();
  return state_->at(slot).page(position / page_size) * page_size + position % page_size;
}

void KvCache::retain(int32_t page) {
  state_->require_pool("holding a page");
  state_->require_held_page(page);
  // Its slot writes a reserved page in place, and nobody else may then hold it.
  require(state_->pool.written(page) > 0, "cache: page {} is to be retained, but nothing is written to it yet", page);
  state_->pool.keep(page);
}

void KvCache::release(int32_t page) {
  state_->require_pool("letting go of a page");
  state_->require_held_page(page);
  // What sequences hold is theirs to give back.
  require(state_->pool.keepers(page) > 0, "cache: page {} is to be released, but nobody has retained it", page);
  state_->pool.unkeep(page);
}

int64_t KvCache::holders(int32_t page) const {
  state_->require_page(page);
  return state_->pool.holders(page);
}

void KvCache::share(int64_t slot, std::span<const int32_t> pages, int64_t length) {
  State& s = *state_;
  s.require_pool("sharing");
  Slot& target = s.empty_slot(slot);
  require(length >= 0 && length <= s.options.capacity, "cache: length is {}, expected 0 to {}", length,
          s.options.capacity);
  const auto count = static_cast<int64_t>(pages.size());
  require(count == s.pages_of(length), "cache: {} pages are to be shared for {} tokens, expected {}", count, length,
          s.pages_of(length));
  int64_t first = 0;
  while (first < count && pages[static_cast<size_t>(first)] == -1) ++first;
  for (int64_t i = first; i < count; ++i) {
    const int32_t page = pages[static_cast<size_t>(i)];
    s.require_held_page(page);
    const int64_t needed = std::min(s.page_size(), length - i * s.page_size());
    require(s.pool.written(page) >= needed, "cache: page {} has {} tokens written, expected {} or more", page,
            s.pool.written(page), needed);
  }
  s.require_different(pages);
  s.require_continues(slot, first, length);
  target.first_page = first;
  for (int64_t i = first; i < count; ++i) {
    s.pool.retain(pages[static_cast<size_t>(i)]);
    target.table.push_back(pages[static_cast<size_t>(i)]);
  }
  target.length = length;
}

void KvCache::reserve(int64_t slot, std::span<const int32_t> pages) {
  State& s = *state_;
  s.require_pool("reserving");
  Slot& target = s.at(slot);
  for (const int32_t page : pages) {
    s.require_page(page);
    require(s.pool.holders(page) == 0, "cache: page {} is in use, expected a free one", page);
  }
  s.require_different(pages);
  require(target.end_page() + static_cast<int64_t>(pages.size()) <= s.pages_of(s.options.capacity),
          "cache: slot {} would have {} pages, but its capacity is {} tokens", slot,
          target.end_page() + static_cast<int64_t>(pages.size()), s.options.capacity);
  for (const int32_t page : pages) {
    s.pool.take(page);
    target.table.push_back(page);
  }
}

kernels::KvPages KvCache::view(int64_t slot) const { return state_->view(state_->at(slot)); }

}  // namespace regard
