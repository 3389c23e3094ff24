#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "regard/interval.h"

namespace regard {

struct AttentionConfig;

/// What the query at `position` sees under a causal mask: itself and everything before [MASK-1].
[[nodiscard]] constexpr Interval causal(int64_t position) { return {0, position}; }
/// What it sees of everything in a sequence of `length` tokens [MASK-6].
[[nodiscard]] constexpr Interval whole_sequence(int64_t length) { return {0, length - 1}; }
/// What it sees under a window of `size` >= 1 keys, itself included [MASK-3].
[[nodiscard]] constexpr Interval sliding_window(int64_t position, int64_t size) {
  return {std::max<int64_t>(0, position - size + 1), position};
}
/// What it sees under a window that looks both ways: `size` / 2 keys (rounded down) on either side, itself between them
/// [MASK-25]. `size` >= 1.
[[nodiscard]] constexpr Interval two_sided_window(int64_t position, int64_t size) {
  return {std::max<int64_t>(0, position - size / 2), position + size / 2};
}
/// All of its chunk of `size` >= 1 positions [MASK-26].
[[nodiscard]] constexpr Interval whole_chunk(int64_t position, int64_t size) {
  return {position / size * size, position / size * size + size - 1};
}
/// What it sees of its chunk of `size` >= 1 positions [MASK-4].
[[nodiscard]] constexpr Interval chunk(int64_t position, int64_t size) { return {position / size * size, position}; }

/// The mask of a layer: which positions of its own sequence a query sees.
struct Mask {
  bool is_causal = true;
  int64_t sliding_window = 0;        ///< 0: off. Where is_causal is false, half of it lies on either side.
  int64_t attention_chunk_size = 0;  ///< 0: off

  [[nodiscard]] static Mask of(const AttentionConfig& config);
  /// The keys that the query at `position` sees when its sequence has `length` tokens, itself included.
  /// Window and chunk apply together where both are set [GAP-27]. Under a causal mask the tokens before `prefix_end`
  /// see each other [MASK-27]; a window then cuts what lies behind a query, and a chunk what lies on either side.
  /// Neither end decreases from one position to the next.
  [[nodiscard]] Interval visible(int64_t position, int64_t length, int64_t prefix_end = 0) const;
  /// The other way round: the queries of a sequence of `length` tokens that see `key`.
  [[nodiscard]] Interval seen_by(int64_t key, int64_t length, int64_t prefix_end = 0) const;
  /// The first position that the query at `position` sees.
  [[nodiscard]] int64_t first_seen(int64_t position) const { return visible(position, position + 1).first; }
  /// How far back a query sees: the most tokens from first_seen(position) to `position`, both included. None: all
  /// tokens before it.
  [[nodiscard]] std::optional<int64_t> reach() const;
  [[nodiscard]] bool has_window() const { return sliding_window > 0; }
  [[nodiscard]] bool has_chunks() const { return attention_chunk_size > 0; }

  /// What limits the reach: "window 128", "chunk 8192", or both; empty where nothing does.
  [[nodiscard]] std::string limits() const;
  /// "causal" or "bidirectional", and the limits: "causal, window 128".
  [[nodiscard]] std::string description() const;
  /// Throws Error, which begins with `caller`, for sizes below 0 or so large that no model has them.
  void check(std::string_view caller) const;

  friend bool operator==(const Mask&, const Mask&) = default;
};

}  // namespace regard
