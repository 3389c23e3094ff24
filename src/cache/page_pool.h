#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace regard {

// Who holds which pages. A page that nobody holds is free; how far it was written is forgotten when it becomes free, so
// that nobody can share what its next owner has not written.
//
// Pages of a group lie side by side. A sequence takes them one after the other, and while there are groups of which
// every page is free, another sequence begins one of its own: memory gives longer runs faster (docs/caches.md).
class PagePool {
 public:
  // The last group may be shorter than `group` pages.
  PagePool(int64_t pages, int64_t group);

  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(pages_.size()); }
  [[nodiscard]] int64_t free() const { return static_cast<int64_t>(free_.size()); }
  [[nodiscard]] int64_t holders(int32_t page) const { return at(page).holders; }
  // How many of them are no sequences.
  [[nodiscard]] int64_t keepers(int32_t page) const { return at(page).keepers; }
  // Tokens of the page that were written, from its first on.
  [[nodiscard]] int64_t written(int32_t page) const { return at(page).written; }
  void set_written(int32_t page, int64_t tokens) { at(page).written = static_cast<int32_t>(tokens); }

  // A free page for the sequence whose last page is `previous` (-1: it has none); there has to be one.
  [[nodiscard]] int32_t take_after(int32_t previous);
  // That page, which has to be free.
  void take(int32_t page);
  void retain(int32_t page) { ++at(page).holders; }
  void release(int32_t page);
  // The same for somebody who is no sequence.
  void keep(int32_t page);
  void unkeep(int32_t page);

 private:
  struct Page {
    int32_t holders = 0;
    int32_t keepers = 0;
    int32_t written = 0;
    int32_t place = 0;  // in free_, while it is free
  };
  struct Group {
    int32_t pages = 0;
    int32_t free = 0;
    int32_t place = 0;  // in free_groups_, while all its pages are free
  };
  [[nodiscard]] const Page& at(int32_t page) const { return pages_[static_cast<size_t>(page)]; }
  [[nodiscard]] Page& at(int32_t page) { return pages_[static_cast<size_t>(page)]; }

  void add_free(int32_t page);
  [[nodiscard]] Group& group_of(int32_t page) { return groups_[static_cast<size_t>(page / group_)]; }

  int32_t group_;
  std::vector<Page> pages_;
  std::vector<Group> groups_;
  std::vector<int32_t> free_;         // the next one last
  std::vector<int32_t> free_groups_;  // the same
};

}  // namespace regard
