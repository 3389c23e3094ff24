#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "regard/mask.h"

namespace regard {

// Tokens of a page where nothing else is asked for and the storage is not contiguous.
inline constexpr int64_t kDefaultPageSize = 32;

// What a later token may still see.
struct Retention {
  Mask mask;
  bool all = true;
  int64_t speculation = 0;  // tokens that may be taken back

  // The first position that the token at `position` sees.
  [[nodiscard]] int64_t first_seen(int64_t position) const { return all ? 0 : mask.first_seen(position); }
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

}  // namespace regard
