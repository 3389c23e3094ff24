#include "cache/page_pool.h"

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

PagePool::PagePool(int64_t pages, int64_t group)
    : group_(static_cast<int32_t>(group)),
      pages_(static_cast<size_t>(pages)),
      groups_(static_cast<size_t>((pages + group - 1) / group)) {
  free_.reserve(pages_.size());
  free_groups_.reserve(groups_.size());
  for (int32_t page = 0; page < static_cast<int32_t>(pages); ++page) ++group_of(page).pages;
  // Low pages go first: a pool that is not full touches little memory.
  for (auto page = static_cast<int32_t>(pages) - 1; page >= 0; --page) add_free(page);
}

int32_t PagePool::take_after(int32_t previous) {
  const int32_t next = previous + 1;
  const bool goes_on = next % group_ != 0 && next < static_cast<int32_t>(size()) && holders(next) == 0;
  const int32_t page = goes_on ? next : free_groups_.empty() ? free_.back() : free_groups_.back() * group_;
  take(page);
  return page;
}

void PagePool::take(int32_t page) {
  remove(free_, at(page).place, [&](int32_t moved) -> int32_t& { return at(moved).place; });
  Group& group = group_of(page);
  if (group.free-- == group.pages)
    remove(free_groups_, group.place,
           [&](int32_t moved) -> int32_t& { return groups_[static_cast<size_t>(moved)].place; });
  at(page).holders = 1;
}

void PagePool::release(int32_t page) {
  if (--at(page).holders > 0) return;
  at(page).written = 0;
  add_free(page);
}

void PagePool::add_free(int32_t page) {
  at(page).place = static_cast<int32_t>(free_.size());
  free_.push_back(page);
  Group& group = group_of(page);
  if (++group.free < group.pages) return;
  group.place = static_cast<int32_t>(free_groups_.size());
  free_groups_.push_back(page / group_);
}

void PagePool::keep(int32_t page) {
  retain(page);
  ++at(page).keepers;
}

void PagePool::unkeep(int32_t page) {
  --at(page).keepers;
  release(page);
}

}  // namespace regard
