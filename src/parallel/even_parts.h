#pragma once

#include <vector>

#include "parallel/rank_sum.h"

namespace regard {

// Part `index` of `parts` of 0..count-1, which differ by one at most.
[[nodiscard]] constexpr ElementRange part_of(int64_t count, int64_t parts, int64_t index) {
  const int64_t first = count * index / parts;
  return {.first = first, .count = count * (index + 1) / parts - first};
}

[[nodiscard]] inline std::vector<ElementRange> even_parts(int64_t count, int64_t parts) {
  std::vector<ElementRange> all;
  for (int64_t i = 0; i < parts; ++i) all.push_back(part_of(count, parts, i));
  return all;
}

}  // namespace regard
