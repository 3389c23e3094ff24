#pragma once

#include <cstdint>
#include <vector>

#include "regard/attention_config.h"
#include "regard/cache.h"

// Small caches, tokens for them, and what can be seen of them.
namespace regard::test {

// Two KV heads, keys of 20 and values of 12: no multiples of the panels' 16.
AttentionConfig two_head_layer(int64_t window = 0, int64_t chunk = 0);
// Of that layer; f32 in pages of 16 unless the options say otherwise.
KvCache paged_cache(const KvCacheOptions& options, int64_t window = 0, int64_t chunk = 0);

// Random tokens, the same for a seed and a first position.
void append(KvCache& cache, int64_t slot, int64_t first, int64_t count, uint64_t seed = 1);
// As a layer does it: a token or a few at a time, and what left the window is given back.
void decode(KvCache& cache, int64_t slot, int64_t end, int64_t at_once = 1);

// All that can be seen of a cache from outside.
struct Snapshot {
  std::vector<int64_t> lengths, first_held, holders;
  std::vector<std::vector<int32_t>> tables;
  std::vector<std::vector<std::byte>> bytes;
  int64_t free_pages = 0;
  friend bool operator==(const Snapshot&, const Snapshot&) = default;
};
Snapshot snapshot(const KvCache& cache);

}  // namespace regard::test
