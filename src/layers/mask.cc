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

Interval Mask::visible(int64_t position, int64_t length) const {
  Interval seen = is_causal ? causal(position) : whole_sequence(length);
  if (has_window()) seen = seen.intersect(regard::sliding_window(position, sliding_window));
  if (has_chunks()) seen = seen.intersect(chunk(position, attention_chunk_size));
  return seen;
}

std::optional<int64_t> Mask::reach() const {
  if (has_window() && has_chunks()) return std::min(sliding_window, attention_chunk_size);
  if (has_window()) return sliding_window;
  if (has_chunks()) return attention_chunk_size;
  return std::nullopt;
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
