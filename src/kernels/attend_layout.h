#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "kernels/attend.h"

// Sizes and places that follow from an attend call, the same for every target.
namespace regard::kernels {

using Unit = AttendWork::Unit;
using Piece = AttendWork::Piece;

/// Scores are sums over head_dim that start afresh at multiples of this: an error in a score goes through exp, so their
/// chains are shorter than a projection's. 32 halves the error of one chain over 128 and costs 1 to 3 % of the time.
inline constexpr int64_t kScoreChain = 32;
static_assert(kBlock % kScoreChain == 0);

inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// Partial attention of rows over some keys: the largest score, the sum of weights relative to it, the weighted values.
/// Partials over disjoint keys merge.
struct Partial {
  float* weighted;  ///< [rows][value_width]
  float* maximum;   ///< [rows], not yet scaled; -inf: no keys
  float* sum;       ///< [rows]
};

/// The keys of a block that a row sees, counted from the block's first.
struct KeyRange {
  int32_t first = 0;
  int32_t last = -1;

  [[nodiscard]] bool empty() const { return first > last; }
  [[nodiscard]] int64_t size() const { return empty() ? 0 : last - first + 1; }
  [[nodiscard]] KeyRange intersect(KeyRange other) const {
    return {std::max(first, other.first), std::min(last, other.last)};
  }
  /// The smallest range that holds both; an empty one adds nothing.
  [[nodiscard]] KeyRange unite(KeyRange other) const {
    if (empty()) return other;
    if (other.empty()) return *this;
    return {std::min(first, other.first), std::max(last, other.last)};
  }
};

/// Sizes, and the places in a thread's scratch memory.
struct AttendLayout {
  bool pairs = false;      ///< products of bf16 by bf16
  int64_t group;           ///< query heads a KV head
  int64_t unit_rows;       ///< the most rows of a unit
  int64_t value_width;     ///< v_head_dim, padded to whole tiles
  int64_t row_floats;      ///< one number a row, padded to whole tiles
  int64_t partial_floats;  ///< of one Partial
  int64_t query_floats;
  int64_t key_floats;  ///< of a decoded key block
  int64_t value_floats;

  /// The most rows that pass by the keys together, on any target.
  static constexpr int64_t kMostRows = kTile;

  AttendLayout(const AttendShape& shape, int64_t longest_span, const CacheSizes& caches)
      : group(shape.heads / shape.kv_heads),
        unit_rows(group * std::clamp<int64_t>(fitting_rows(shape, caches) / group, 1, longest_span)),
        value_width(round_up(shape.v_head_dim, kTile)),
        // A vector of rows may start at the last one.
        row_floats(round_up(unit_rows, kTile) + kTile),
        partial_floats(unit_rows * value_width + 2 * row_floats),
        query_floats(blocks(shape.head_dim) * unit_rows * kBlock),
        key_floats(kBlock * shape.head_dim),
        value_floats(kBlock * value_width) {}

  /// Rows (tokens times query heads of a group) that a unit aims at: enough to use each key block many times, few
  /// enough that their queries and partials share three quarters of the L2 cache with a block. A multiple of all row
  /// tiles.
  [[nodiscard]] static int64_t fitting_rows(const AttendShape& shape, const CacheSizes& caches) {
    constexpr int64_t kStep = 48;
    constexpr int64_t kMost = 5 * kStep;
    const int64_t row_bytes = (shape.head_dim + shape.v_head_dim) * static_cast<int64_t>(sizeof(float));
    const int64_t rows = caches.l2 / 4 * 3 / row_bytes - kBlock;
    return std::clamp(rows / kStep * kStep, kStep, kMost);
  }
  [[nodiscard]] int64_t tile_floats() const { return kMostRows * value_width + 2 * kMostRows; }
  [[nodiscard]] int64_t thread_floats() const {
    return query_floats + kMostRows * kBlock * 3 / 2 + partial_floats + tile_floats() + key_floats + value_floats +
           4 * row_floats + 2 * kBlock;
  }
  [[nodiscard]] Partial partial_at(float* memory) const {
    return {.weighted = memory,
            .maximum = memory + unit_rows * value_width,
            .sum = memory + unit_rows * value_width + row_floats};
  }
  [[nodiscard]] Partial rows_of(const Partial& partial, int64_t first) const {
    return {.weighted = partial.weighted + first * value_width,
            .maximum = partial.maximum + first,
            .sum = partial.sum + first};
  }
};

/// A thread's scratch memory, cut into its pieces.
struct ThreadMemory {
  float* queries;
  float* scores;           ///< [kMostRows][kBlock], of one tile of rows
  uint16_t* bf16_weights;  ///< The same, where they are rounded
  Partial state;
  Partial partial;  ///< Of one tile of rows
  float* keys;
  float* values;
  float* factors;       ///< 2 * row_floats
  float* key_scales;    ///< [kBlock]
  float* value_scales;  ///< [kBlock]
  KeyRange* seen;       ///< [rows]

  ThreadMemory(float* memory, const AttendLayout& layout) {
    const auto take = [&](int64_t count) { return std::exchange(memory, memory + count); };
    queries = take(layout.query_floats);
    scores = take(AttendLayout::kMostRows * kBlock);
    bf16_weights = reinterpret_cast<uint16_t*>(take(AttendLayout::kMostRows * kBlock / 2));
    state = layout.partial_at(take(layout.partial_floats));
    partial.weighted = take(AttendLayout::kMostRows * layout.value_width);
    partial.maximum = take(AttendLayout::kMostRows);
    partial.sum = take(AttendLayout::kMostRows);
    keys = take(layout.key_floats);
    values = take(layout.value_floats);
    factors = take(2 * layout.row_floats);
    key_scales = take(kBlock);
    value_scales = take(kBlock);
    seen = reinterpret_cast<KeyRange*>(memory);
  }
};

}  // namespace regard::kernels
