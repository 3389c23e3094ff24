// Random operations on caches of every storage, next to a plain model of the same cache.
#include <gtest/gtest.h>

#include "regard/attend.h"
#include "support/cache_driver.h"
#include "support/numbers.h"
#include "support/property.h"

namespace regard::test {
namespace {

// [KV-6], [KV-9], [KV-10], [KV-21], [KV-25], [KV-26], [KV-62], [GAP-40]: lengths, what is read, the first positions
// that are held, pages and their holders, and which operations are refused. A refused one changes nothing.
TEST(CacheOperations, AreThoseOfThePlainModel) {
  check_property(10'000, [] {
    const auto scene = *cache_scenes(false);
    const auto operations = *cache_operations();
    CacheDriver driver(scene);
    for (const CacheOperation& operation : operations) driver.apply(operation);
  });
}

TEST(CacheOperations, AreThoseOfThePlainModelOnLongSequences) {
  check_property(1500, [] {
    const auto scene = *cache_scenes(true);
    const auto operations = *cache_operations();
    CacheDriver driver(scene);
    for (const CacheOperation& operation : operations) driver.apply(operation);
  });
}

// The last tokens of a sequence, as far as all that they see is held.
Span last_queries(const CacheDriver& driver, int64_t slot, const Mask& mask) {
  const int64_t length = driver.cache().length(slot);
  int64_t first = length;
  while (first > 0 && length - first < 5 && mask.visible(first - 1, length).first >= driver.cache().first_held(slot))
    --first;
  return {.slot = slot, .first_position = first, .count = length - first};
}

struct Attended {
  Tensor output, lse;
};

Attended attended(const KvCache& cache, const Span& span, const Mask& mask, Workspace& workspace) {
  const int64_t heads = 2 * cache.num_key_value_heads();
  // The query of a position, whatever its sequence's place.
  const Tensor queries =
      Numbers(static_cast<uint64_t>(span.first_position)).tensor({span.count, heads, cache.head_dim()});
  Attended result{Tensor(DType::f32, {span.count, heads, cache.v_head_dim()}), Tensor(DType::f32, {span.count, heads})};
  attend({.queries = queries,
          .spans = std::span(&span, 1),
          .cache = &cache,
          .mask = mask,
          .output = result.output,
          .lse = result.lse,
          .workspace = &workspace});
  return result;
}

// The same tokens in a contiguous cache of their own, by pages of another size.
KvCache fresh_cache(const CacheScene& scene, std::span<const Token> tokens, const TokenNumbers& numbers) {
  const auto count = static_cast<int64_t>(tokens.size());
  auto cache = KvCache::contiguous(
      {.slots = 1, .capacity = count, .keys = scene.formats().keys, .values = scene.formats().values}, scene.config());
  const auto [keys, values] = numbers.of(tokens);
  cache.append({.slot = 0, .count = count}, keys, values);
  return cache;
}

void expect_the_attention_of_fresh_caches(const CacheScene& scene, const CacheDriver& driver, Workspace& workspace) {
  const Mask mask = Mask::of(scene.config());
  for (int64_t slot = 0; slot < driver.cache().slots(); ++slot) {
    const Span span = last_queries(driver, slot, mask);
    if (span.count == 0) continue;
    const Attended ours = attended(driver.cache(), span, mask, workspace);
    const KvCache fresh = fresh_cache(scene, driver.model().slot(slot).tokens, driver.numbers());
    const Span same{.slot = 0, .first_position = span.first_position, .count = span.count};
    const Attended theirs = attended(fresh, same, mask, workspace);
    RC_ASSERT(bytes_of(ours.output) == bytes_of(theirs.output));
    RC_ASSERT(bytes_of(ours.lse) == bytes_of(theirs.lse));
  }
}

// [MASK-14]: where a token's keys lie, who shares them, and what was there before, changes no bit of its attention.
TEST(CacheOperations, LeaveTheAttentionOfAContiguousCache) {
  Workspace workspace(2);
  for (const auto& [is_long, cases] : {std::pair{false, 2000}, {true, 700}})
    check_property(cases, [&workspace, is_long = is_long] {
      const auto scene = *cache_scenes(is_long);
      const auto operations = *cache_operations();
      CacheDriver driver(scene);
      for (const CacheOperation& operation : operations) {
        driver.apply(operation);
        if (operation.seed % 4 == 0) expect_the_attention_of_fresh_caches(scene, driver, workspace);
      }
      expect_the_attention_of_fresh_caches(scene, driver, workspace);
    });
}

}  // namespace
}  // namespace regard::test
