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
/// What it sees of its chunk of `size` >= 1 positions [MASK-4].
[[nodiscard]] constexpr Interval chunk(int64_t position, int64_t size) { return {position / size * size, position}; }

/// The mask of a layer: which positions of its own sequence a query sees.
struct Mask {
  bool is_causal = true;
  int64_t sliding_window = 0;        ///< 0: off
  int64_t attention_chunk_size = 0;  ///< 0: off

  [[nodiscard]] static Mask of(const AttentionConfig& config);
  /// The keys that the query at `position` sees when its sequence has `length` tokens, itself included.
  /// Window and chunk apply together where both are set [GAP-27].
  [[nodiscard]] Interval visible(int64_t position, int64_t length) const;
  /// The first position that the query at `position` sees. It does not decrease from one position to the next.
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
