#pragma once

#include <algorithm>
#include <cstdint>

namespace regard {

// Indices begin .. end-1 of something that is dealt out; empty where they are equal.
struct Part {
  int64_t begin = 0;
  int64_t end = 0;

  [[nodiscard]] int64_t count() const { return end - begin; }
  friend bool operator==(const Part&, const Part&) = default;
};

// The index-th of `parts` consecutive parts of `count` things. No part has two more than another; where there are fewer
// things than parts, some are empty.
[[nodiscard]] constexpr Part part_of(int64_t count, int64_t parts, int64_t index) {
  return {.begin = count * index / parts, .end = count * (index + 1) / parts};
}

// The inner columns of an MLP are dealt out in leaves of so many: whole cache lines of any type, and for common widths
// whole quantised blocks.
inline constexpr int64_t kMlpLeaf = 128;

// The columns of an MLP that rank `rank` of `tp` computes; the last leaf of all may be shorter.
[[nodiscard]] constexpr Part mlp_part_of(int64_t columns, int64_t tp, int64_t rank) {
  const Part leaves = part_of((columns + kMlpLeaf - 1) / kMlpLeaf, tp, rank);
  return {.begin = std::min(leaves.begin * kMlpLeaf, columns), .end = std::min(leaves.end * kMlpLeaf, columns)};
}

}  // namespace regard
