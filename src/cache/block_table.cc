#include "regard/block_table.h"

#include <algorithm>

#include "cache/kv_cache_state.h"

namespace regard {

int64_t BlockTables::page_size() const { return state_->page_size(); }
int64_t BlockTables::pages() const { return state_->pool.size(); }
int64_t BlockTables::free_pages() const { return state_->pool.free(); }

std::vector<int32_t> BlockTables::table(int64_t slot) const {
  const Slot& found = state_->at(slot);
  std::vector<int32_t> pages(static_cast<size_t>(found.first_page), -1);
  pages.insert(pages.end(), found.table.begin(), found.table.end());
  pages.resize(static_cast<size_t>(state_->pages_of(found.length)));
  return pages;
}

int32_t BlockTables::page_of(int64_t slot, int64_t index) const {
  const Slot& found = state_->at(slot);
  const int64_t pages = state_->pages_of(found.length);
  require(index >= 0 && index < pages, "cache: slot {} has {} pages, but number {} is asked for", slot, pages, index);
  return index < found.first_page ? -1 : found.page(index);
}

int64_t BlockTables::slot_mapping(int64_t slot, int64_t position) const {
  state_->require_stored(slot, position, 1);
  const int64_t page_size = state_->page_size();
  return state_->at(slot).page(position / page_size) * page_size + position % page_size;
}

void BlockTables::retain(int32_t page) {
  state_->require_pool("holding a page");
  state_->require_held_page(page);
  // Its slot writes a reserved page in place, and nobody else may then hold it.
  require(state_->pool.written(page) > 0, "cache: page {} is to be retained, but nothing is written to it yet", page);
  state_->pool.keep(page);
}

void BlockTables::release(int32_t page) {
  state_->require_pool("letting go of a page");
  state_->require_held_page(page);
  // What sequences hold is theirs to give back.
  require(state_->pool.keepers(page) > 0, "cache: page {} is to be released, but nobody has retained it", page);
  state_->pool.unkeep(page);
}

int64_t BlockTables::reference_count(int32_t page) const {
  state_->require_page(page);
  return state_->pool.holders(page);
}

int32_t BlockTables::next_unused(int32_t previous) const {
  if (previous != -1) state_->require_held_page(previous);
  return state_->pool.next_unused(previous);
}

void BlockTables::leave_trim_to_owner() { state_->owner_trims = true; }
bool BlockTables::owner_trims() const { return state_->owner_trims; }

void BlockTables::share(int64_t slot, std::span<const int32_t> pages, int64_t length) {
  KvCache::State& s = *state_;
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

void BlockTables::reserve(int64_t slot, std::span<const int32_t> pages) {
  KvCache::State& s = *state_;
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

}  // namespace regard
