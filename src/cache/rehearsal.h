#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "cache/slot.h"
#include "regard/cache.h"

namespace regard {

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
  RehearsalNotes(int64_t pages, int64_t slots) : given_back(static_cast<size_t>(pages)) {
    held.reserve(static_cast<size_t>(slots));
    touched.reserve(given_back.size());
  }

  std::vector<PageRange> held;      // by each span's slot
  std::vector<int32_t> given_back;  // how many have let go of each page of the pool
  std::vector<int32_t> touched;     // the pages of which somebody has
};

// How many more free pages it would take to append the spans, `tokens_at_once` at a time and each time followed by a
// trim; 0 if there are enough. Nothing changes.
[[nodiscard]] int64_t missing_pages(const Retention& retention, const PagePool& pool, int64_t page_size,
                                    std::span<const Slot> slots, std::span<const Span> spans, int64_t tokens_at_once,
                                    RehearsalNotes& notes);

}  // namespace regard
