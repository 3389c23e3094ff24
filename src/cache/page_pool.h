#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace regard {

// Who holds which pages. A page that nobody holds is free; how far it was written is forgotten when it becomes free, so
// that nobody can share what its next owner has not written.
//
// A sequence takes pages that lie side by side as long as it can: memory gives longer runs faster (docs/caches.md).
// Where it can't go on, it begins in a stretch of pages that are all free, so that there is room behind it: the longer
// the sequence, the longer the stretch, up to sixteen times the shortest.
class PagePool {
 public:
  // Stretches have `shortest` pages or more; the last of a pool may have fewer.
  PagePool(int64_t pages, int64_t shortest);

  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(pages_.size()); }
  [[nodiscard]] int64_t free() const { return static_cast<int64_t>(free_.size()); }
  [[nodiscard]] int64_t holders(int32_t page) const { return at(page).holders; }
  // How many of them are no sequences.
  [[nodiscard]] int64_t keepers(int32_t page) const { return at(page).keepers; }
  // Tokens of the page that were written, from its first on.
  [[nodiscard]] int64_t written(int32_t page) const { return at(page).written; }
  void set_written(int32_t page, int64_t tokens) { at(page).written = static_cast<int32_t>(tokens); }

  // A free page for the sequence whose last page is `previous` (-1: it has none) and that has, or will have, `length`
  // pages; there has to be a free one.
  [[nodiscard]] int32_t take_after(int32_t previous, int64_t length);
  // That page, which has to be free.
  void take(int32_t page);
  void retain(int32_t page) {
    ++at(page).holders;
    if (at(page).unused) leave_unused(page);
  }
  void release(int32_t page) {
    if (--at(page).holders == at(page).keepers) note_last_release(page);
  }
  // The same for somebody who is no sequence.
  void keep(int32_t page);
  void unkeep(int32_t page);

  // The page after `previous` (-1: the first) of those that are kept, but that no sequence holds, the one that was let
  // go of longest ago first; -1 if there is none.
  [[nodiscard]] int32_t next_unused(int32_t previous) const { return previous < 0 ? oldest_ : at(previous).newer; }

 private:
  struct Page {
    int32_t holders = 0;
    int32_t keepers = 0;
    int32_t written = 0;
    int32_t place = 0;  // in free_, while it is free
    // Its neighbours among the unused, while it is one of them.
    int32_t older = -1;
    int32_t newer = -1;
    bool unused = false;
  };
  struct Stretch {
    int32_t pages = 0;
    int32_t free = 0;
    int32_t place = 0;  // in its kind's `free`, while all its pages are free
  };
  // The pool, cut into stretches of one length.
  struct Stretches {
    int32_t length = 0;
    std::vector<Stretch> all;
    std::vector<int32_t> free;  // those of which every page is, the next one last

    [[nodiscard]] Stretch& of(int32_t page) { return all[static_cast<size_t>(page / length)]; }
    void take(int32_t page);
    void add_free(int32_t page);
  };
  [[nodiscard]] const Page& at(int32_t page) const { return pages_[static_cast<size_t>(page)]; }
  [[nodiscard]] Page& at(int32_t page) { return pages_[static_cast<size_t>(page)]; }

  void add_free(int32_t page);
  void set_free(int32_t page);
  void note_last_release(int32_t page);
  void leave_unused(int32_t page);
  // Of a page's neighbour, or of the list's end where there is none.
  [[nodiscard]] int32_t& newer_than(int32_t page) { return page < 0 ? oldest_ : at(page).newer; }
  [[nodiscard]] int32_t& older_than(int32_t page) { return page < 0 ? newest_ : at(page).older; }
  [[nodiscard]] int32_t new_beginning(int64_t length) const;

  std::vector<Page> pages_;
  std::array<Stretches, 3> stretches_;  // of lengths that grow by the factor 4
  std::vector<int32_t> free_;           // the next one last
  int32_t oldest_ = -1;                 // of the unused
  int32_t newest_ = -1;
};

}  // namespace regard
