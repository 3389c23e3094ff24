#include "regard/mask.h"

#include "regard/attention_config.h"

namespace regard {

Mask Mask::of(const AttentionConfig& config) {
  return {.is_causal = config.is_causal,
          .sliding_window = config.sliding_window,
          .attention_chunk_size = config.attention_chunk_size};
}

Interval Mask::visible(int64_t position, int64_t length) const {
  Interval seen = is_causal ? causal(position) : whole_sequence(length);
  if (sliding_window > 0) seen = seen.intersect(regard::sliding_window(position, sliding_window));
  if (attention_chunk_size > 0) seen = seen.intersect(chunk(position, attention_chunk_size));
  return seen;
}

}  // namespace regard
