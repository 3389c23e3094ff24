// A saved sequence of any bytes is restored or refused; what is restored is where later keys can follow it.
#include <vector>

#include "fuzz/memory_file.h"
#include "regard/attention_config.h"
#include "regard/cache.h"
#include "regard/error.h"
#include "regard/saved_sequence.h"

namespace regard {
namespace {

// The caches of write_seeds' model.
std::vector<KvCache> make_caches() {
  const AttentionConfig config{.hidden_size = 8, .num_attention_heads = 2, .num_key_value_heads = 1};
  std::vector<KvCache> caches;
  caches.push_back(KvCache::contiguous({.slots = 2, .capacity = 64}, config.validated()));
  return caches;
}

}  // namespace
}  // namespace regard

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const regard::MemoryFile file(std::as_bytes(std::span(data, size)));
  auto caches = regard::make_caches();
  try {
    (void)regard::saved_tokens(file.path());
    (void)regard::restore_sequence(file.path(), caches, 1);
  } catch (const regard::Error&) {
    // Refused, as it should be.
  }
  if (caches.front().length(1) > 64) std::abort();
  return 0;
}
