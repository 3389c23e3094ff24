#pragma once

#include <algorithm>
#include <cstdint>

namespace regard {

/// The keys one query may see: positions first..last, both inclusive; empty when first > last.
/// Causal, sliding-window, chunked and padded attention are all intervals, and compose by intersection.
struct Interval {
  int64_t first = 0;
  int64_t last = -1;

  [[nodiscard]] constexpr bool empty() const { return first > last; }
  /// Positions inside; 0 when empty.
  [[nodiscard]] constexpr int64_t size() const { return empty() ? 0 : last - first + 1; }
  [[nodiscard]] constexpr bool contains(int64_t position) const { return first <= position && position <= last; }
  [[nodiscard]] constexpr Interval intersect(Interval other) const {
    return {std::max(first, other.first), std::min(last, other.last)};
  }
  friend bool operator==(Interval, Interval) = default;
};

}  // namespace regard
