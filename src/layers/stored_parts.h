#pragma once

#include <vector>

#include "regard/cache.h"

namespace regard {

// What is stored of tokens, as it travels between ranks: keys, values and, where there are any, their scales.
struct StoredPart {
  Tensor KvCache::StoredTokens::*tensor;
  int64_t bytes;  // of a token's head

  [[nodiscard]] std::byte* at(const KvCache::StoredTokens& tokens, int64_t token, int64_t head) const {
    const TensorView all = (tokens.*tensor).view();
    return all.data() + (token * all.size(1) + head) * bytes;
  }
};

[[nodiscard]] std::vector<StoredPart> stored_parts(const KvCache::StoredTokens& tokens);

// Room for `count` tokens of `heads` heads, in the form of others.
[[nodiscard]] KvCache::StoredTokens stored_like(const KvCache::StoredTokens& others, int64_t count, int64_t heads);

}  // namespace regard
