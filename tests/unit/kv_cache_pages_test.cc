// Pages: where tokens lie in them, who holds them, who gets them next.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "regard/attend.h"
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
using test::Snapshot;
using test::snapshot;
using test::two_head_layer;
using ::testing::ElementsAre;
using Pages = std::vector<int32_t>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// [KV-62], [KV-66], [KV-67]: place = page * page_size + offset, also of tokens that go on in another page.
TEST(KvCachePages, ATokensPlaceFollowsFromItsPage) {
  KvCache cache = paged_cache({.slots = 4, .capacity = 160, .page_size = 32, .pages = 8});
  cache.block_tables().reserve(0, Pages{0});
  cache.block_tables().reserve(1, Pages{1});
  cache.block_tables().reserve(2, Pages{2, 3, 4, 5});
  append(cache, 0, 0, 7);
  append(cache, 1, 0, 9);
  append(cache, 2, 0, 127);
  EXPECT_EQ(cache.block_tables().slot_mapping(0, 6), 6);
  EXPECT_EQ(cache.block_tables().slot_mapping(1, 8), 40);
  EXPECT_EQ(cache.block_tables().slot_mapping(2, 126), 190);
  EXPECT_THAT(cache.block_tables().table(2), ElementsAre(2, 3, 4, 5));
  for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(cache.block_tables().slot_mapping(2, 62 + i), 126 + i);
  EXPECT_ERROR((void)cache.block_tables().slot_mapping(3, 7), "slot 3");  // an inactive row
}

// Sequences that grow in turns: each has its own eight pages of 32 tokens, side by side, for each 256 tokens.
TEST(KvCachePages, APoolThatIsNotFullGivesASequenceSuccessivePages) {
  KvCache cache = paged_cache({.slots = 3, .capacity = 512, .page_size = 32, .pages = 64});
  for (int64_t first = 0; first < 512; first += 32)
    for (int64_t slot = 0; slot < 3; ++slot) append(cache, slot, first, 32);
  for (int64_t slot = 0; slot < 3; ++slot) {
    SCOPED_TRACE(slot);
    const Pages pages = cache.block_tables().table(slot);
    for (size_t i = 0; i < pages.size(); ++i)
      EXPECT_EQ(pages[i], pages[i / 8 * 8] + static_cast<int32_t>(i % 8)) << "page " << i;
  }
}

// Sequences that grow in turns: where one can't go on behind its last page, it finds a run of at least a quarter of
// what it has (of 256 tokens at the least, of 4096 at the most), so that a long one lies in few pieces.
TEST(KvCachePages, LongerSequencesLieInLongerRuns) {
  constexpr int64_t kLength = 12288;
  KvCache cache = paged_cache({.slots = 3, .capacity = kLength, .page_size = 32, .pages = 4 * kLength / 32});
  for (int64_t first = 0; first < kLength; first += 32)
    for (int64_t slot = 0; slot < 3; ++slot) append(cache, slot, first, 32);
  for (int64_t slot = 0; slot < 3; ++slot) {
    SCOPED_TRACE(slot);
    const Pages pages = cache.block_tables().table(slot);
    for (size_t begin = 0; begin < pages.size();) {
      size_t end = begin + 1;
      while (end < pages.size() && pages[end] == pages[end - 1] + 1) ++end;
      const size_t least = std::clamp<size_t>(begin / 4, 256 / 32, 4096 / 32);
      EXPECT_TRUE(end == pages.size() || end - begin >= least) << "pages " << begin << " to " << end;
      begin = end;
    }
  }
}

// A window moves on over few pages, however many a pool has: it would bring all their memory to life.
TEST(KvCachePages, ASmallWindowStaysWithFewPages) {
  KvCache cache = KvCache::ring({.slots = 32, .capacity = 4096, .page_size = 16}, two_head_layer(32));
  std::set<int32_t> touched;
  for (int64_t first = 0; first < 4096; first += 16) {
    append(cache, 0, first, 16);
    for (const int32_t page : cache.block_tables().table(0)) touched.insert(page);
  }
  EXPECT_LT(touched.size(), static_cast<size_t>(cache.block_tables().pages() / 8));
}

// A contiguous slot has all its pages side by side, also where they are no whole groups of 256 tokens.
TEST(KvCachePages, AContiguousSlotIsOneRunOfPages) {
  KvCache cache = KvCache::contiguous({.slots = 3, .capacity = 288, .page_size = 32}, two_head_layer());
  for (int64_t slot = 0; slot < 3; ++slot) {
    append(cache, slot, 0, 288);
    const Pages pages = cache.block_tables().table(slot);
    for (size_t i = 0; i < pages.size(); ++i) EXPECT_EQ(pages[i], pages[0] + static_cast<int32_t>(i));
  }
}

// Also where no group of pages is free as a whole: what a sequence gave back goes to the next one in its order.
TEST(KvCachePages, PagesOfAFullPoolComeInTheOrderOfThoseGivenBack) {
  KvCache cache = paged_cache({.slots = 3, .capacity = 256, .page_size = 32, .pages = 16});
  append(cache, 0, 0, 128);
  append(cache, 1, 0, 256);
  for (int round = 0; round < 2; ++round) {
    append(cache, 2, 0, 128);
    EXPECT_THAT(cache.block_tables().table(2), ElementsAre(4, 5, 6, 7));
    cache.truncate(2, 0);
  }
}

// [KV-60]: a pool has no page that nobody can get, even if it is no multiple of those that lie side by side; and once
// all are given back, sequences have successive ones again.
TEST(KvCachePages, APoolGivesAwayItsLastPage) {
  constexpr int64_t kPages = 37;
  KvCache cache = paged_cache({.slots = kPages, .capacity = 512, .page_size = 32, .pages = kPages});
  for (const int64_t slots : {kPages, int64_t{4}, int64_t{3}}) {
    SCOPED_TRACE(slots);
    std::set<int32_t> seen;
    for (int64_t i = 0; i < kPages; ++i) append(cache, i % slots, i / slots * 32, 32);
    for (int64_t slot = 0; slot < slots; ++slot)
      for (const int32_t page : cache.block_tables().table(slot))
        EXPECT_TRUE(seen.insert(page).second) << "page " << page;
    EXPECT_EQ(seen.size(), static_cast<size_t>(kPages));
    EXPECT_EQ(cache.block_tables().free_pages(), 0);
    // In an order that is not the slots'.
    for (int64_t i = 0; i < slots; ++i) cache.truncate((i * 5 + 2) % slots, 0);
    EXPECT_EQ(cache.block_tables().free_pages(), kPages);
  }
  append(cache, 0, 0, 256);
  const Pages pages = cache.block_tables().table(0);
  for (size_t i = 1; i < pages.size(); ++i) EXPECT_EQ(pages[i], pages[0] + static_cast<int32_t>(i));
}

// [KV-64], [KV-68]: a table takes its pages at once, and shows those with tokens.
TEST(KvCachePages, ReservedPagesAreWrittenInOrder) {
  KvCache cache = paged_cache({.slots = 2, .capacity = 64, .pages = 8});
  cache.block_tables().reserve(0, Pages{7, 2});
  EXPECT_EQ(cache.block_tables().free_pages(), 6);
  EXPECT_THAT(cache.block_tables().table(0), ElementsAre());
  EXPECT_ERROR((void)cache.read(0, 0, 1), "holds 0");
  append(cache, 0, 0, 3);
  EXPECT_THAT(cache.block_tables().table(0), ElementsAre(7));
  append(cache, 1, 0, 16);
  append(cache, 0, 3, 40);
  EXPECT_EQ(cache.block_tables().table(0)[1], 2);
  EXPECT_EQ(cache.block_tables().free_pages(), 4);
  EXPECT_EQ(cache.block_tables().slot_mapping(0, 17), 2 * 16 + 1);
}

// A prefix cache: pages outlive their sequence, serve others, and are copied by whoever writes to them first.
TEST(KvCachePages, ARetainedPrefixIsSharedAndNotWrittenTo) {
  KvCache cache = paged_cache({.slots = 3, .capacity = 64, .pages = 8});
  append(cache, 0, 0, 20);
  const Pages prefix = cache.block_tables().table(0);
  const auto stored = test::bytes_of(cache.read(0, 0, 20).first);
  for (const int32_t page : prefix) cache.block_tables().retain(page);
  cache.truncate(0, 0);
  EXPECT_EQ(cache.block_tables().free_pages(), 6);
  cache.block_tables().share(1, prefix, 20);
  cache.block_tables().share(2, prefix, 18);
  EXPECT_EQ(cache.block_tables().reference_count(prefix[1]), 3);
  append(cache, 1, 20, 1, 2);
  append(cache, 2, 18, 3, 3);
  EXPECT_EQ(cache.block_tables().table(1)[0], prefix[0]);
  EXPECT_NE(cache.block_tables().table(1)[1], prefix[1]);
  EXPECT_EQ(cache.block_tables().reference_count(prefix[1]), 1);
  cache.block_tables().share(0, prefix, 20);
  EXPECT_EQ(test::bytes_of(cache.read(0, 0, 20).first), stored);
  for (const int64_t slot : {0, 1, 2}) cache.truncate(slot, 0);
  EXPECT_EQ(cache.block_tables().free_pages(), 6);
  for (const int32_t page : prefix) cache.block_tables().release(page);
  EXPECT_EQ(cache.block_tables().free_pages(), 8);
  EXPECT_ERROR(cache.block_tables().share(0, prefix, 20), "is free");
}

// [KV-9]: of a draft's tokens some stay, moved together; what others hold does not change.
TEST(KvCachePages, AcceptedTokensMoveTogether) {
  for (const KvStorage storage : {KvStorage::contiguous, KvStorage::paged})
    for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
      KvCache cache(storage, {.slots = 2, .capacity = 64, .dtype = dtype, .page_size = 16}, two_head_layer());
      append(cache, 0, 0, 36);
      cache.fork(0, 1, 36);
      const auto old = cache.read_stored(1, 0, 36);
      // Positions 14, 16, 17, 30 and 35 become 14 to 18, across the end of a page.
      cache.accept(0, 14, std::vector<int64_t>{0, 2, 3, 16, 21});
      EXPECT_EQ(cache.length(0), 19);
      const std::vector<int64_t> sources = {13, 14, 16, 17, 30, 35};
      for (size_t i = 0; i < sources.size(); ++i) {
        const auto ours = cache.read_stored(0, 13 + static_cast<int64_t>(i), 1);
        const auto theirs = cache.read_stored(1, sources[i], 1);
        EXPECT_EQ(test::bytes_of(ours.keys), test::bytes_of(theirs.keys));
        EXPECT_EQ(test::bytes_of(ours.values), test::bytes_of(theirs.values));
        if (dtype != DType::i8) continue;
        EXPECT_EQ(test::bytes_of(ours.key_scales), test::bytes_of(theirs.key_scales));
        EXPECT_EQ(test::bytes_of(ours.value_scales), test::bytes_of(theirs.value_scales));
      }
      EXPECT_EQ(test::bytes_of(cache.read_stored(1, 0, 36).keys), test::bytes_of(old.keys));
      cache.accept(0, 14, {});
      EXPECT_EQ(cache.length(0), 14);
    }
}

// What left the window can't be moved into.
TEST(KvCachePages, AcceptingBeforeTheWindowIsRefused) {
  KvCache cache = paged_cache({.slots = 1, .capacity = 64}, 4);
  decode(cache, 0, 40);
  ASSERT_EQ(cache.first_held(0), 32);
  std::vector<int64_t> indices(15);
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int64_t>(i) + 1;
  EXPECT_ERROR(cache.accept(0, 21, indices), "position 21 of slot 0 was given back");
  EXPECT_EQ(cache.length(0), 40);
}

// A sequence that is saved without what left the window, and restored into a cache with other pages.
TEST(KvCachePages, ARestoredSequenceHoldsWholePages) {
  KvCache cache = paged_cache({.slots = 2, .capacity = 64}, 4);
  append(cache, 1, 0, 64, 9);  // what the pages held before
  cache.truncate(1, 0);
  append(cache, 0, 0, 40);
  const auto stored = cache.read_stored(0, 5, 35);
  cache.truncate(0, 0);
  cache.restore_stored(1, 5, stored);
  EXPECT_EQ(cache.length(1), 40);
  EXPECT_EQ(cache.first_held(1), 16);
  EXPECT_ERROR((void)cache.read(1, 5, 1), "position 5 of slot 1 was given back");
  EXPECT_ERROR(cache.truncate(1, 7), "sees position 4");
  const Tensor kept = cache.read_stored(1, 16, 24).keys;
  EXPECT_EQ(test::bytes_of(kept), test::bytes_of(stored.keys.view().slice(0, 11, 24)));
}

// [GAP-40] to [GAP-45], [KV-23], [KV-60]: in every storage, calls change the slots that they name, and -1 names none.
TEST(KvCachePages, OtherSlotsKeepEveryByte) {
  for (const KvStorage storage : {KvStorage::contiguous, KvStorage::ring, KvStorage::chunk, KvStorage::paged})
    for (const DType dtype : {DType::f32, DType::i8}) {
      SCOPED_TRACE(::testing::Message() << static_cast<int>(storage) << ' ' << name_of(dtype));
      KvCache cache(storage, {.slots = 3, .capacity = 100, .dtype = dtype, .page_size = 16}, two_head_layer(20, 32));
      for (const int64_t slot : {0, 1, 2}) decode(cache, slot, 30 + 15 * slot);
      const auto others = [&] {
        Snapshot all = snapshot(cache);
        for (auto* numbers : {&all.lengths, &all.first_held}) numbers->erase(numbers->begin() + 1);
        all.tables.erase(all.tables.begin() + 1);
        const auto parts = static_cast<std::ptrdiff_t>(all.bytes.size() / 3);
        all.bytes.erase(all.bytes.begin() + parts, all.bytes.begin() + 2 * parts);
        all.holders.clear();
        all.free_pages = 0;
        return all;
      };
      const Snapshot before = others();
      decode(cache, 1, 100);
      EXPECT_EQ(others(), before);
      append(cache, 1, 0, 40);
      cache.accept(1, 36, std::vector<int64_t>{1, 3});
      EXPECT_EQ(others(), before);
      cache.truncate(1, 0);
      EXPECT_EQ(others(), before);
      const Snapshot all = snapshot(cache);
      append(cache, -1, 0, 30);
      append(cache, -1, 99, 2);
      EXPECT_EQ(snapshot(cache), all);
    }
}

std::vector<std::byte> attended(const KvCache& cache, int64_t slot) {
  const Span last{.slot = slot, .first_position = cache.length(slot) - 3, .count = 3};
  const Tensor queries = test::Numbers(5).tensor({3, 4, 20});
  const Tensor output(DType::f32, {3, 4, 12});
  Workspace workspace(1);
  attend(
      {.queries = queries, .spans = std::span(&last, 1), .cache = &cache, .output = output, .workspace = &workspace});
  return test::bytes_of(output);
}

// What whoever retains pages may let go of: in the order in which sequences have, their last pages first.
TEST(KvCachePages, TellsWhichRetainedPagesNoSequenceHolds) {
  KvCache cache = paged_cache({.slots = 3, .capacity = 64});
  append(cache, 0, 0, 40);
  append(cache, 1, 0, 16);
  const Pages a = cache.block_tables().table(0);
  const int32_t b = cache.block_tables().page_of(1, 0);
  const auto unused = [&] {
    Pages pages;
    for (int32_t page = cache.block_tables().next_unused(); page >= 0; page = cache.block_tables().next_unused(page))
      pages.push_back(page);
    return pages;
  };
  for (const int32_t page : {a[0], a[1], b, b}) cache.block_tables().retain(page);
  EXPECT_EQ(unused(), Pages{});
  cache.truncate(1, 0);
  EXPECT_EQ(unused(), Pages{b});
  cache.truncate(0, 0);
  EXPECT_EQ(unused(), (Pages{b, a[1], a[0]}));
  cache.block_tables().share(2, Pages{a[0], a[1]}, 32);
  EXPECT_EQ(unused(), Pages{b});
  cache.truncate(2, 16);
  cache.block_tables().release(b);
  EXPECT_EQ(unused(), (Pages{b, a[1]}));
  cache.block_tables().release(a[1]);
  EXPECT_EQ(unused(), Pages{b});
  cache.block_tables().release(b);
  EXPECT_EQ(unused(), Pages{});
  EXPECT_ERROR((void)cache.block_tables().next_unused(b), "is free");
}

// What its only holder has forgotten is not there to be shared.
TEST(KvCachePages, TokensTakenBackCantBeShared) {
  KvCache cache = paged_cache({.slots = 3, .capacity = 64});
  append(cache, 0, 0, 10);
  const Pages page = cache.block_tables().table(0);
  cache.fork(0, 1, 10);
  cache.truncate(0, 3);
  cache.block_tables().share(2, page, 10);  // slot 1 still holds them
  cache.truncate(2, 0);
  cache.truncate(1, 0);
  cache.truncate(0, 2);
  EXPECT_ERROR(cache.block_tables().share(2, page, 3), "has 2 tokens written");
  append(cache, 0, 2, 10);
  cache.accept(0, 8, std::vector<int64_t>{1});
  EXPECT_ERROR(cache.block_tables().share(2, page, 10), "has 9 tokens written");
  cache.block_tables().share(2, page, 9);
}

// [MASK-8]: NaN, infinities and huge numbers of a sequence that is gone change no bit of whoever gets its pages, and
// nobody can read them.
TEST(KvCachePages, WhatAPageHeldBeforeIsNotSeen) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f8_e4m3, DType::f8_e5m2, DType::i8, DType::i4})
    for (const float left : {kNan, kInfinity, -3e38F})
      for (const int64_t length : {3, 16, 17, 40}) {
        SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << left << ' ' << length);
        KvCache fresh = paged_cache({.slots = 2, .capacity = 64, .dtype = dtype});
        KvCache used = paged_cache({.slots = 2, .capacity = 64, .dtype = dtype, .pages = 4});
        Tensor keys(DType::f32, {64, 2, 20});
        Tensor values(DType::f32, {64, 2, 12});
        for (float& x : keys.elements<float>()) x = left;
        for (float& x : values.elements<float>()) x = left;
        used.append({.slot = 1, .count = 64}, keys, values);
        const Pages pages = used.block_tables().table(1);
        used.truncate(1, 0);
        append(fresh, 0, 0, length);
        append(used, 0, 0, length);
        EXPECT_EQ(attended(used, 0), attended(fresh, 0));
        EXPECT_ERROR((void)used.read(0, length, 1), "holds");
        const Pages own = used.block_tables().table(0);
        if (length % 16 != 0) {
          EXPECT_ERROR(used.block_tables().share(1, own, length + 1), "tokens written");
        }
        for (const int32_t page : pages) {
          if (used.block_tables().reference_count(page) > 0) continue;
          EXPECT_ERROR(used.block_tables().share(1, Pages{page}, 1), "is free");
        }
      }
}

// [MASK-3]: attention to what was given back is refused, not read.
TEST(KvCachePages, AttendRefusesWhatIsNotHeld) {
  KvCache cache = paged_cache({.slots = 1, .capacity = 64}, 4);
  decode(cache, 0, 40);
  const Tensor queries = test::Numbers(5).tensor({1, 4, 20});
  const Tensor output(DType::f32, {1, 4, 12});
  const auto attend_at = [&](int64_t position, int64_t window) {
    const Span span{.slot = 0, .first_position = position, .count = 1};
    attend({.queries = queries,
            .spans = std::span(&span, 1),
            .cache = &cache,
            .mask = {.sliding_window = window},
            .output = output});
  };
  EXPECT_EQ(error_of([&] { attend_at(39, 4); }), "");
  EXPECT_EQ(error_of([&] { attend_at(35, 4); }), "");
  EXPECT_ERROR(attend_at(34, 4), "the token at position 34 of slot 0 sees position 31, but only 32 and later are held");
  EXPECT_ERROR(attend_at(39, 0), "sees position 0");
}

// As the example of block_table.h says; the tables stay with a cache that is moved.
TEST(BlockTables, AreWhatAnEngineNamesAndReads) {
  KvCache made = KvCache::paged({.slots = 2, .capacity = 64, .page_size = 16, .pages = 8}, two_head_layer());
  BlockTables& tables = made.block_tables();
  const Pages blocks = {5, 2};
  tables.reserve(0, blocks);
  KvCache cache = std::move(made);
  append(cache, 0, 0, 20);
  EXPECT_EQ(&cache.block_tables(), &tables);
  EXPECT_EQ(tables.table(0), blocks);
  EXPECT_EQ(tables.slot_mapping(0, 17), 2 * 16 + 1);
  tables.share(1, tables.table(0), 20);
  EXPECT_EQ(tables.reference_count(5), 2);
  append(cache, 1, 20, 1);
  EXPECT_EQ(tables.reference_count(2), 1);
  EXPECT_EQ(cache.length(0), 20);
}

}  // namespace
}  // namespace regard
