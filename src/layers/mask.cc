#include "regard/mask.h"

#include <fmt/format.h>

#include "regard/attention_config.h"
#include "tensor/fail.h"

namespace regard {

Mask Mask::of(const AttentionConfig& config) {
  return {.is_causal = config.is_causal,
          .sliding_window = config.sliding_window,
          .attention_chunk_size = config.attention_chunk_size};
}

Interval Mask::visible(int64_t position, int64_t length, int64_t prefix_end) const {
  Interval seen = !is_causal ? whole_sequence(length) : causal(std::max(position, prefix_end - 1));
  if (has_window() && is_causal)
    seen.first = std::max(seen.first, regard::sliding_window(position, sliding_window).first);
  if (has_window() && !is_causal) seen = seen.intersect(two_sided_window(position, sliding_window));
  if (has_chunks()) seen = seen.intersect(whole_chunk(position, attention_chunk_size));
  return seen;
}

Interval Mask::seen_by(int64_t key, int64_t length, int64_t prefix_end) const {
  Interval queries = whole_sequence(length);
  if (is_causal && key >= prefix_end) queries.first = key;
  if (has_window() && is_causal) queries.last = std::min(queries.last, key + sliding_window - 1);
  if (has_window() && !is_causal) queries = queries.intersect(two_sided_window(key, sliding_window));
  if (has_chunks()) queries = queries.intersect(whole_chunk(key, attention_chunk_size));
  return queries;
}

std::optional<int64_t> Mask::reach() const {
  std::optional<int64_t> reach;
  if (has_window()) reach = is_causal ? sliding_window : sliding_window / 2 + 1;
  if (has_chunks()) reach = std::min(reach.value_or(attention_chunk_size), attention_chunk_size);
  return reach;
}

std::string Mask::limits() const {
  std::string text;
  if (has_window()) text = fmt::format("window {}", sliding_window);
  if (has_chunks()) text += fmt::format("{}chunk {}", text.empty() ? "" : ", ", attention_chunk_size);
  return text;
}

std::string Mask::description() const {
  const std::string limited_by = limits();
  return fmt::format("{}{}{}", is_causal ? "causal" : "bidirectional", limited_by.empty() ? "" : ", ", limited_by);
}

void Mask::check(std::string_view caller) const {
  constexpr int64_t kMost = int64_t{1} << 40;
  require(sliding_window >= 0 && sliding_window <= kMost, "{}: sliding_window is {}, expected 0 (off) to {}", caller,
          sliding_window, kMost);
  require(attention_chunk_size >= 0 && attention_chunk_size <= kMost,
          "{}: attention_chunk_size is {}, expected 0 (off) to {}", caller, attention_chunk_size, kMost);
}

}  // namespace regard
