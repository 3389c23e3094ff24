#include "support/small_cache.h"

#include <algorithm>

#include "regard/block_table.h"
#include "support/numbers.h"

namespace regard::test {

AttentionConfig two_head_layer(int64_t window, int64_t chunk) {
  AttentionConfig config{.hidden_size = 8, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 20};
  config.v_head_dim = 12;
  config.sliding_window = window;
  config.attention_chunk_size = chunk;
  return config;
}

KvCache paged_cache(const KvCacheOptions& options, int64_t window, int64_t chunk) {
  KvCacheOptions filled = options;
  if (filled.page_size == 0) filled.page_size = 16;
  return KvCache::paged(filled, two_head_layer(window, chunk));
}

void append(KvCache& cache, int64_t slot, int64_t first, int64_t count, uint64_t seed) {
  Numbers numbers(seed * 1000 + static_cast<uint64_t>(first));
  cache.append({.slot = slot, .first_position = first, .count = count},
               numbers.tensor({count, cache.num_key_value_heads(), cache.head_dim()}),
               numbers.tensor({count, cache.num_key_value_heads(), cache.v_head_dim()}));
}

void decode(KvCache& cache, int64_t slot, int64_t end, int64_t at_once) {
  while (cache.length(slot) < end) {
    append(cache, slot, cache.length(slot), std::min(at_once, end - cache.length(slot)));
    cache.trim(slot);
  }
}

Snapshot snapshot(const KvCache& cache) {
  Snapshot all{.free_pages = cache.block_tables().free_pages()};
  for (int64_t slot = 0; slot < cache.slots(); ++slot) {
    const int64_t first = cache.first_held(slot);
    all.lengths.push_back(cache.length(slot));
    all.first_held.push_back(first);
    all.tables.push_back(cache.block_tables().table(slot));
    const auto stored = cache.read_stored(slot, first, cache.length(slot) - first);
    for (const Tensor* part : {&stored.keys, &stored.values, &stored.key_scales, &stored.value_scales})
      if (!part->empty()) all.bytes.push_back(bytes_of(*part));
  }
  for (int32_t page = 0; page < cache.block_tables().pages(); ++page)
    all.holders.push_back(cache.block_tables().reference_count(page));
  return all;
}

}  // namespace regard::test
