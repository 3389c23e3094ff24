// What windows and chunks keep, and how much memory they take for it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "regard/block_table.h"
#include "regard/cache.h"
#include "support/error_of.h"
#include "support/expect_error.h"
#include "support/numbers.h"
#include "support/small_cache.h"

namespace regard {
namespace {

using test::append;
using test::decode;
using test::error_of;
using test::paged_cache;
using test::two_head_layer;

TEST(KvCacheReach, ARingNeedsAWindowAndAChunkCacheChunks) {
  EXPECT_ERROR(KvCache::ring({.slots = 1, .capacity = 8}, two_head_layer()), "a ring needs a layer with a window");
  EXPECT_ERROR(KvCache::chunk({.slots = 1, .capacity = 8}, two_head_layer(4)),
               "a chunk cache needs a layer with chunks");
}

struct Kept {
  int64_t length;
  int64_t first;  // that the next token sees
  int64_t held;   // by whole pages of 16
};

// [KV-25]: after a token at position p the W - 1 last ones stay, p included, and as many more as a draft is long.
TEST(KvCacheReach, AWindowKeepsWhatTheNextTokenSees) {
  const auto expect_kept = [](int64_t window, int64_t speculation, const std::vector<Kept>& all) {
    for (const KvStorage storage : {KvStorage::ring, KvStorage::paged})
      for (const Kept& kept : all) {
        SCOPED_TRACE(::testing::Message() << "window " << window << ", speculation " << speculation << ", length "
                                          << kept.length << ", storage " << static_cast<int>(storage));
        KvCache cache(
            storage,
            {.slots = 1, .capacity = 200, .dtype = DType::f32, .page_size = 16, .speculation_length = speculation},
            two_head_layer(window));
        decode(cache, 0, kept.length);
        EXPECT_EQ(cache.first_held(0), kept.held);
        EXPECT_LE(cache.first_held(0), kept.first);
        EXPECT_EQ(error_of([&] { (void)cache.read(0, kept.first, kept.length - kept.first); }), "");
      }
  };
  expect_kept(4, 0,
              {{3, 0, 0}, {4, 1, 0}, {7, 4, 0}, {8, 5, 0}, {18, 15, 0}, {19, 16, 16}, {51, 48, 48}, {50, 47, 32}});
  expect_kept(4, 1, {{4, 0, 0}, {8, 4, 0}, {19, 15, 0}, {20, 16, 16}});
  expect_kept(4, 3, {{21, 15, 0}, {22, 16, 16}});
  expect_kept(17, 0, {{31, 15, 0}, {32, 16, 16}, {150, 134, 128}});
  expect_kept(1, 0, {{15, 15, 0}, {16, 16, 16}, {17, 17, 16}});
  expect_kept(1000, 0, {{150, 0, 0}});  // [GAP-46]
}

// [KV-26]: of a chunk that is full the next token sees nothing.
TEST(KvCacheReach, AChunkKeepsItself) {
  const std::vector<std::pair<int64_t, int64_t>> kept = {{31, 0}, {32, 32}, {33, 32}, {63, 32}, {64, 64}, {95, 64}};
  for (const KvStorage storage : {KvStorage::chunk, KvStorage::paged})
    for (const auto& [length, held] : kept) {
      KvCache cache(storage, {.slots = 1, .capacity = 200, .dtype = DType::f32, .page_size = 16},
                    two_head_layer(0, 32));
      decode(cache, 0, length);
      EXPECT_EQ(cache.first_held(0), held) << length;
    }
  // A draft may reach back into the last chunk.
  KvCache cache = paged_cache({.slots = 1, .capacity = 200, .speculation_length = 2}, 0, 32);
  decode(cache, 0, 33);
  EXPECT_EQ(cache.first_held(0), 0);
  decode(cache, 0, 34);
  EXPECT_EQ(cache.first_held(0), 32);
}

// A refused draft as long as it may be can always be taken back, and no more is promised.
TEST(KvCacheReach, ADraftCanBeTakenBack) {
  for (int64_t length = 4; length < 60; ++length) {
    KvCache cache = paged_cache({.slots = 1, .capacity = 64, .speculation_length = 3}, 5);
    decode(cache, 0, length, 4);
    EXPECT_EQ(error_of([&] { cache.truncate(0, length - 3); }), "") << length;
    EXPECT_EQ(error_of([&] { append(cache, 0, length - 3, 4); }), "") << length;
  }
  KvCache cache = paged_cache({.slots = 1, .capacity = 64}, 4);
  decode(cache, 0, 19);
  EXPECT_ERROR(cache.truncate(0, 18), "can't go on from position 18: that token sees position 15");
  EXPECT_ERROR(append(cache, 0, 18, 1), "can't go on from position 18");
  EXPECT_ERROR(cache.fork(0, 0, 18), "in use");
  EXPECT_EQ(error_of([&] { append(cache, 0, 0, 1); }), "");  // a new sequence
}

// [KV-25]: a window's cache is as large as its windows, not as its sequences, and its calls always find room.
TEST(KvCacheReach, AThousandWindowsTakeAThousandWindowsOfMemory) {
  constexpr int64_t kSlots = 1000;
  constexpr int64_t kWindow = 128;
  constexpr int64_t kCapacity = 2000;
  AttentionConfig config{.hidden_size = 2, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1};
  config.sliding_window = kWindow;
  for (const KvStorage storage : {KvStorage::ring, KvStorage::paged}) {
    KvCache cache(storage, {.slots = kSlots, .capacity = kCapacity, .dtype = DType::f32}, config);
    // Beyond the windows: what a call of 512 tokens adds, to as many sequences as it may.
    const int64_t spare = KvCache::kTokensAtOnce + 256 * cache.block_tables().page_size();
    EXPECT_LE(cache.block_tables().pages() * cache.block_tables().page_size(), kSlots * kWindow * 3 / 2 + spare);
    // Pieces of many sizes, at different places of the pages, until all are full.
    test::Numbers numbers(51);
    const Tensor rows = numbers.tensor({KvCache::kTokensAtOnce, 1, 1});
    int64_t full = 0;
    for (int64_t round = 0; full < kSlots; ++round)
      for (int64_t slot = 0; slot < kSlots; ++slot) {
        const int64_t length = cache.length(slot);
        if (length == kCapacity) continue;
        const int64_t wanted = round % 3 == 0 ? 1 + slot % 7 : round % 3 == 1 ? 512 : 100 + slot % 91;
        const int64_t count = std::min(wanted, kCapacity - length);
        const ConstTensorView part = rows.view().slice(0, 0, count);
        ASSERT_EQ(error_of([&] {
                    cache.append({.slot = slot, .first_position = length, .count = count}, part, part);
                    cache.trim(slot);
                  }),
                  "");
        full += length + count == kCapacity ? 1 : 0;
      }
    EXPECT_LE((cache.block_tables().pages() - cache.block_tables().free_pages()) * cache.block_tables().page_size(),
              kSlots * kWindow * 3 / 2);
  }
}

// A call of 512 tokens over any number of sequences, all of which are as full as can be.
TEST(KvCacheReach, CallsOfManySequencesFindRoom) {
  constexpr int64_t kSlots = 300;
  AttentionConfig config{.hidden_size = 2, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1};
  config.sliding_window = 33;
  for (const int64_t each : {1, 2, 3, 16, 17, 31, 32, 33, 100, 512}) {
    KvCache cache = KvCache::ring(
        {.slots = kSlots, .capacity = 700, .dtype = DType::f32, .page_size = 16, .speculation_length = 2}, config);
    const Tensor rows = test::Numbers(52).tensor({512, 1, 1});
    for (int64_t slot = 0; slot < kSlots; ++slot) {
      const ConstTensorView part = rows.view().slice(0, 0, 100 + slot % 16);
      cache.append({.slot = slot, .count = 100 + slot % 16}, part, part);
      cache.trim(slot);
    }
    std::vector<Span> spans;
    for (int64_t slot = 0; slot < std::min(kSlots, 512 / each); ++slot)
      spans.push_back({.slot = slot, .first_position = cache.length(slot), .count = each});
    EXPECT_EQ(cache.missing_pages(spans), 0) << each;
  }
}

// All sequences verify a draft at the same time, each across as many pages as it may lie in.
TEST(KvCacheReach, RingsHaveRoomForTheDraftsOfAllSequences) {
  constexpr int64_t kSlots = 300;
  AttentionConfig config{.hidden_size = 2, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1};
  config.sliding_window = 30;
  KvCache cache = KvCache::ring(
      {.slots = kSlots, .capacity = 200, .dtype = DType::f32, .page_size = 16, .speculation_length = 2}, config);
  for (int64_t slot = 0; slot < kSlots; ++slot) decode(cache, slot, 46, 46);  // the last token of page 0 is held
  for (int64_t slot = 0; slot < kSlots; ++slot) append(cache, slot, 46, 3);
  EXPECT_EQ(cache.block_tables().table(0).size(), 4U);
}

// A copy of a shared page that leaves the window during the call makes room for what comes later in it.
TEST(KvCacheReach, ACopyThatIsGivenBackIsCountedAsFree) {
  KvCache cache = paged_cache({.slots = 3, .capacity = 64, .pages = 3}, 4);
  append(cache, 0, 0, 20);
  cache.fork(0, 1, 20);
  cache.fork(0, 2, 20);
  const Span span{.slot = 0, .first_position = 20, .count = 40};
  EXPECT_EQ(cache.missing_pages(std::span(&span, 1), 16), 0);
  for (const int64_t end : {36, 52, 60}) {
    append(cache, 0, cache.length(0), end - cache.length(0));
    cache.trim(0);
  }
  EXPECT_EQ(cache.block_tables().free_pages(), 1);
}

// Forking takes no page and copies none; freeing gives back those that nobody else holds.
TEST(KvCacheReach, ForksCostAsManyPagesAsTheyWrite) {
  KvCache cache = paged_cache({.slots = 9, .capacity = 160, .pages = 18});
  append(cache, 0, 0, 150);
  ASSERT_EQ(cache.block_tables().free_pages(), 8);
  for (int64_t slot = 1; slot < 9; ++slot) cache.fork(0, slot, 150);
  EXPECT_EQ(cache.block_tables().free_pages(), 8);
  for (int64_t slot = 0; slot < 9; ++slot) append(cache, slot, 150, 1, static_cast<uint64_t>(slot));
  EXPECT_EQ(cache.block_tables().free_pages(), 0);  // eight copies of the last page; the last one needs none
  for (int64_t slot = 0; slot < 8; ++slot) cache.truncate(slot, 0);
  EXPECT_EQ(cache.block_tables().free_pages(), 8);
  cache.truncate(8, 0);
  EXPECT_EQ(cache.block_tables().free_pages(), 18);
}

}  // namespace
}  // namespace regard
