#include "cache/page_pool.h"

namespace regard {

PagePool::PagePool(int64_t pages) : pages_(static_cast<size_t>(pages)) {
  free_.reserve(pages_.size());
  // Low pages go first: a pool that is not full touches little memory.
  for (auto page = static_cast<int32_t>(pages) - 1; page >= 0; --page) {
    at(page).place = static_cast<int32_t>(free_.size());
    free_.push_back(page);
  }
}

int32_t PagePool::take() {
  const int32_t page = free_.back();
  take(page);
  return page;
}

void PagePool::take(int32_t page) {
  const int32_t last = free_.back();
  const int32_t place = at(page).place;
  free_[static_cast<size_t>(place)] = last;
  at(last).place = place;
  free_.pop_back();
  at(page).holders = 1;
}

void PagePool::release(int32_t page) {
  if (--at(page).holders > 0) return;
  at(page).written = 0;
  at(page).place = static_cast<int32_t>(free_.size());
  free_.push_back(page);
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
