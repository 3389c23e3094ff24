#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace regard {

// Things first..first+count-1 of many.
struct ElementRange {
  int64_t first = 0;
  int64_t count = 0;

  [[nodiscard]] constexpr int64_t end() const { return first + count; }
  friend bool operator==(const ElementRange&, const ElementRange&) = default;
};

// The index-th of `parts` consecutive parts of `count` things. No part has two more than another; where there are fewer
// things than parts, some are empty.
[[nodiscard]] constexpr ElementRange part_of(int64_t count, int64_t parts, int64_t index) {
  const int64_t first = count * index / parts;
  return {.first = first, .count = count * (index + 1) / parts - first};
}

[[nodiscard]] inline std::vector<ElementRange> even_parts(int64_t count, int64_t parts) {
  std::vector<ElementRange> all;
  for (int64_t i = 0; i < parts; ++i) all.push_back(part_of(count, parts, i));
  return all;
}

// What is in both, counted from the first of `window`.
[[nodiscard]] constexpr ElementRange inside(ElementRange range, ElementRange window) {
  const int64_t first = std::clamp(range.first, window.first, window.end());
  return {.first = first - window.first, .count = std::clamp(range.end(), window.first, window.end()) - first};
}

// The inner columns of an MLP are dealt out in leaves of so many: whole cache lines of any type, and for common widths
// whole quantised blocks.
inline constexpr int64_t kMlpLeaf = 128;

[[nodiscard]] constexpr int64_t mlp_leaves(int64_t columns) { return (columns + kMlpLeaf - 1) / kMlpLeaf; }

// The columns of an MLP that rank `rank` of `tp` computes; the last leaf of all may be shorter.
[[nodiscard]] constexpr ElementRange mlp_part_of(int64_t columns, int64_t tp, int64_t rank) {
  const ElementRange leaves = part_of(mlp_leaves(columns), tp, rank);
  const int64_t first = std::min(leaves.first * kMlpLeaf, columns);
  return {.first = first, .count = std::min(leaves.end() * kMlpLeaf, columns) - first};
}

}  // namespace regard
