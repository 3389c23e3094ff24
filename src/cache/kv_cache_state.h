#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "cache/page_store.h"
#include "cache/rehearsal.h"
#include "cache/slot.h"
#include "regard/block_table.h"
#include "regard/cache.h"
#include "tensor/fail.h"

namespace regard {

// What a cache consists of, the checks that come before a change, and the changes.
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
  bool owner_trims = false;
  uint64_t checks = 0;  // made so far
  RehearsalNotes notes;
  BlockTables tables = {};

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
    require(span.prefix >= 0 && span.prefix <= span.count,
            "cache: span of slot {} has a prefix of {} tokens, expected 0 to its count {}", span.slot, span.prefix,
            span.count);
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

  [[nodiscard]] int64_t pages_spanned(std::span<const Span> spans) const {
    int64_t pages = 0;
    for (const Span& span : spans)
      if (span.slot != -1) pages += pages_of(span.first_position + span.count) - span.first_position / page_size();
    return pages;
  }
  int64_t missing_pages(std::span<const Span> spans, int64_t tokens_at_once) {
    require(tokens_at_once >= 1, "cache: tokens_at_once is {}, expected 1 or more", tokens_at_once);
    ++checks;
    for (const Span& span : spans) check_span(span);
    // The usual case: there are enough if every span took all its pages anew.
    if (fixed() || pages_spanned(spans) <= pool.free()) return 0;
    return regard::missing_pages(retention, pool, page_size(), slots, spans, tokens_at_once, notes);
  }
  void check(std::span<const Span> spans, int64_t tokens_at_once) {
    const int64_t missing = missing_pages(spans, tokens_at_once);
    require(missing == 0, "cache: {} more free pages of {} tokens are needed; {} of {} are free", missing, page_size(),
            pool.free(), pool.size());
  }

  // ---- Changes, which only happen once everything was checked ----

  void release_pages(Slot& slot, int64_t first, int64_t end) {
    // The last one first: what is freed last is taken first, and goes on with those that follow it.
    for (int64_t page = end - 1; page >= first; --page) pool.release(slot.page(page));
  }
  void drop_after(Slot& slot, int64_t length) {
    slot.length = length;
    if (fixed()) return;
    const int64_t end = std::max(slot.first_page, pages_of(length));
    if (end < slot.end_page()) {
      release_pages(slot, end, slot.end_page());
      slot.table.resize(static_cast<size_t>(end - slot.first_page));
    }
    forget_written(slot, length);
    if (length == 0) slot.first_page = 0;
  }
  // Nobody can share what the only holder of a page has forgotten.
  void forget_written(const Slot& slot, int64_t length) {
    const int64_t page = length / page_size();
    if (length % page_size() == 0 || page < slot.first_page || pool.holders(slot.page(page)) > 1) return;
    pool.set_written(slot.page(page), std::min(pool.written(slot.page(page)), length % page_size()));
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
    const int32_t copy = pool.take_after(-1, 1);
    keys.copy_page(page, copy);
    values.copy_page(page, copy);
    pool.set_written(copy, pool.written(page));
    pool.release(page);
    page = copy;
  }
  // The pages of positions first..end-1 of a slot, and how many of them others hold too.
  void make_own(Slot& slot, int64_t first, int64_t end) {
    for (int64_t page = first / page_size(); page < pages_of(end); ++page) make_own(slot.page(page));
  }
  [[nodiscard]] int64_t shared_pages(const Slot& slot, int64_t first, int64_t end) const {
    int64_t shared = 0;
    for (int64_t page = first / page_size(); page < pages_of(end); ++page)
      shared += pool.holders(slot.page(page)) > 1 ? 1 : 0;
    return shared;
  }
  // kv_cache_stored.cc
  void check_stored(const StoredTokens& tokens, int64_t count) const;
  void write_stored(const Slot& slot, int64_t first, int64_t skipped, const StoredTokens& tokens);
  void move_token(const Slot& slot, int64_t from, int64_t to) {
    for (PageStore* store : {&keys, &values})
      store->copy_token(slot.page(from / page_size()), from % page_size(), slot.page(to / page_size()),
                        to % page_size());
  }
  void take_pages(Slot& slot, int64_t end_page) {
    const int64_t length = end_page - slot.first_page;
    while (slot.end_page() < end_page)
      slot.table.push_back(pool.take_after(slot.table.empty() ? -1 : slot.table.back(), length));
  }
  // Pages for tokens first..first+count-1, which follow what the slot holds.
  void make_room(Slot& slot, int64_t first, int64_t count) {
    if (first < slot.length) drop_after(slot, first);
    drop_before(slot, retention.first_needed(first));
    if (slot.table.empty()) slot.first_page = first / page_size();
    const int64_t page = first / page_size();
    if (first % page_size() != 0 && page < slot.end_page()) make_own(slot.page(page));
    take_pages(slot, pages_of(first + count));
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

}  // namespace regard
