#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "regard/dtype.h"
#include "regard/mask.h"

namespace regard::cli {

/// One case of attention without projections, written as in "prefill:f32:b1:h32:kv8:d128:s2048" or
/// "decode:bf16:b8:h32:kv8:d128:l8192": batch, query heads, KV heads, head_dim, and s = tokens that each sequence
/// prefills or l = tokens that each sequence's cache holds, the decoded one included. Optional: v128 (v_head_dim), w128
/// (sliding window), c8192 (chunk), sink, p32 (a paged cache of pages of 32 tokens, as its pool gives them to sequences
/// that grow in turns), scattered (pages in random order). The dtype is the inputs' and the cache's for prefill, the
/// cache's for decode.
struct AttentionShape {
  enum class Stage : uint8_t { prefill, decode };

  Stage stage = Stage::prefill;
  DType dtype = DType::f32;
  int64_t batch = 1;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t length = 0;
  int64_t page_size = 0;  // 0: a contiguous cache
  Mask mask;
  bool sink = false;
  bool scattered = false;

  /// Throws Error for text that is no such case.
  [[nodiscard]] static AttentionShape parse(std::string_view text);

  /// Query tokens a sequence; the first one's position is length - queries().
  [[nodiscard]] int64_t queries() const { return stage == Stage::prefill ? length : 1; }
  /// Floating-point operations inside the mask: two a multiply-add, of scores and of weighted values.
  [[nodiscard]] double operations() const;
  /// Bytes of the keys and values that any query sees, each counted once.
  [[nodiscard]] double bytes() const;
};

}  // namespace regard::cli
