#include "cache/page_pool.h"

#include <algorithm>

namespace regard {
namespace {

// Takes what lies at `place` out of `all`; the last one moves there.
template <class PlaceOf>
void remove(std::vector<int32_t>& all, int32_t place, PlaceOf place_of) {
  all[static_cast<size_t>(place)] = all.back();
  place_of(all.back()) = place;
  all.pop_back();
}

}  // namespace

PagePool::PagePool(int64_t pages, int64_t shortest) : pages_(static_cast<size_t>(pages)) {
  int64_t length = shortest;
  for (Stretches& kind : stretches_) {
    kind.length = static_cast<int32_t>(std::min(length, pages));
    kind.all.resize(static_cast<size_t>((pages + kind.length - 1) / kind.length));
    kind.free.reserve(kind.all.size());
    length *= 4;
  }
  free_.reserve(pages_.size());
  for (int32_t page = 0; page < static_cast<int32_t>(pages); ++page)
    for (Stretches& kind : stretches_) ++kind.of(page).pages;
  // Low pages go first: a pool that is not full touches little memory.
  for (auto page = static_cast<int32_t>(pages) - 1; page >= 0; --page) add_free(page);
}

int32_t PagePool::take_after(int32_t previous, int64_t length) {
  const int32_t next = previous + 1;
  // What never holds more than a stretch, as a small window does, stays with a few of them: it would wander through the
  // whole pool and touch all its memory.
  const int32_t shortest = stretches_.front().length;
  const bool within = next % shortest != 0 || length > shortest;
  const bool goes_on = previous >= 0 && within && next < static_cast<int32_t>(size()) && holders(next) == 0;
  const int32_t page = goes_on ? next : new_beginning(length);
  take(page);
  return page;
}

int32_t PagePool::new_beginning(int64_t length) const {
  for (size_t kind = stretches_.size(); kind-- > 0;) {
    const Stretches& stretches = stretches_[kind];
    const bool fits = kind == 0 || stretches.length <= length;
    if (fits && !stretches.free.empty()) return stretches.free.back() * stretches.length;
  }
  return free_.back();
}

void PagePool::take(int32_t page) {
  remove(free_, at(page).place, [&](int32_t moved) -> int32_t& { return at(moved).place; });
  for (Stretches& kind : stretches_) kind.take(page);
  at(page).holders = 1;
}

// The last sequence has let go of a page: it is free, or the newest of the unused.
void PagePool::note_last_release(int32_t page) {
  Page& p = at(page);
  if (p.keepers == 0) return set_free(page);
  p.unused = true;
  p.older = newest_;
  p.newer = -1;
  newer_than(newest_) = page;
  newest_ = page;
}

void PagePool::leave_unused(int32_t page) {
  Page& p = at(page);
  p.unused = false;
  newer_than(p.older) = p.newer;
  older_than(p.newer) = p.older;
}

void PagePool::set_free(int32_t page) {
  at(page).written = 0;
  add_free(page);
}

void PagePool::add_free(int32_t page) {
  at(page).place = static_cast<int32_t>(free_.size());
  free_.push_back(page);
  for (Stretches& kind : stretches_) kind.add_free(page);
}

void PagePool::Stretches::take(int32_t page) {
  Stretch& stretch = of(page);
  if (stretch.free-- == stretch.pages)
    remove(free, stretch.place, [&](int32_t moved) -> int32_t& { return all[static_cast<size_t>(moved)].place; });
}

void PagePool::Stretches::add_free(int32_t page) {
  Stretch& stretch = of(page);
  if (++stretch.free < stretch.pages) return;
  stretch.place = static_cast<int32_t>(free.size());
  free.push_back(page / length);
}

void PagePool::keep(int32_t page) {
  ++at(page).keepers;
  ++at(page).holders;
}

void PagePool::unkeep(int32_t page) {
  --at(page).keepers;
  if (--at(page).holders > 0) return;
  leave_unused(page);
  set_free(page);
}

}  // namespace regard
