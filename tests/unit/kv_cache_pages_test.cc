// Pages: who holds them, what windows and chunks keep, shared prefixes, block tables, given scales.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "regard/attend.h"
#include "regard/cache.h"
#include "regard/error.h"
#include "regard/oracle.h"
#include "support/error_budget.h"
#include "support/error_of.h"
#include "support/expect_error.h"
#include "support/numbers.h"
#include "support/plain_f32.h"
#include "support/rounding.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
using Pages = std::vector<int32_t>;

// Two KV heads, keys of 20 and values of 12.
AttentionConfig layer(int64_t window = 0, int64_t chunk = 0) {
  AttentionConfig config{.hidden_size = 8, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 20};
  config.v_head_dim = 12;
  config.sliding_window = window;
  config.attention_chunk_size = chunk;
  return config;
}

KvCache paged(const KvCacheOptions& options, int64_t window = 0, int64_t chunk = 0) {
  KvCacheOptions filled = options;
  if (!filled.dtype) filled.dtype = DType::f32;
  if (filled.page_size == 0) filled.page_size = 16;
  return KvCache::paged(filled, layer(window, chunk));
}

void append(KvCache& cache, int64_t slot, int64_t first, int64_t count, uint64_t seed = 1) {
  test::Numbers numbers(seed * 1000 + static_cast<uint64_t>(first));
  cache.append({.slot = slot, .first_position = first, .count = count},
               numbers.tensor({count, cache.num_key_value_heads(), cache.head_dim()}),
               numbers.tensor({count, cache.num_key_value_heads(), cache.v_head_dim()}));
}

// As a layer does it: a token or a few at a time, and what left the window is given back.
void decode(KvCache& cache, int64_t slot, int64_t end, int64_t at_once = 1) {
  while (cache.length(slot) < end) {
    append(cache, slot, cache.length(slot), std::min(at_once, end - cache.length(slot)));
    cache.trim(slot);
  }
}

// All that can be seen of a cache from outside.
struct Snapshot {
  std::vector<int64_t> lengths, first_held, holders;
  std::vector<Pages> tables;
  std::vector<std::vector<std::byte>> bytes;
  int64_t free_pages = 0;
  friend bool operator==(const Snapshot&, const Snapshot&) = default;
};

Snapshot snapshot(const KvCache& cache) {
  Snapshot all{.free_pages = cache.free_pages()};
  for (int64_t slot = 0; slot < cache.slots(); ++slot) {
    const int64_t first = cache.first_held(slot);
    all.lengths.push_back(cache.length(slot));
    all.first_held.push_back(first);
    all.tables.push_back(cache.page_table(slot));
    const auto stored = cache.read_stored(slot, first, cache.length(slot) - first);
    for (const Tensor* part : {&stored.keys, &stored.values, &stored.key_scales, &stored.value_scales})
      if (!part->empty()) all.bytes.push_back(test::bytes_of(*part));
  }
  for (int32_t page = 0; page < cache.pages(); ++page) all.holders.push_back(cache.holders(page));
  return all;
}

// ---- Errors, each before anything changes ----

// Slot 0 holds 40 tokens in pages 0, 1, 2; slot 1 the first 20 of them; slot 2 had 3 in page 3 and reserves page 5;
// slot 3 is empty. Pages 4, 6 and 7 are free.
KvCache scene() {
  KvCache cache = paged({.slots = 4, .capacity = 64, .pages = 8});
  append(cache, 0, 0, 40);
  cache.fork(0, 1, 20);
  append(cache, 2, 0, 3);
  cache.reserve(2, Pages{5});
  return cache;
}

struct Refused {
  const char* name;
  std::function<void(KvCache&)> call;
  const char* message;
  std::function<void(KvCache&)> before = [](KvCache&) {};
};

const std::vector<Refused> kRefused = {
    {"share into a live slot", [](KvCache& c) { c.share(0, Pages{0}, 16); }, "slot 0 is in use with 40 tokens"},
    {"share into a reserved slot", [](KvCache& c) { c.share(2, Pages{0}, 16); }, "slot 2 is in use with 0 tokens",
     [](KvCache& c) {
       c.truncate(2, 0);
       c.reserve(2, Pages{7});
     }},
    {"share into no slot", [](KvCache& c) { c.share(4, Pages{0}, 16); }, "slot is 4, expected 0 to 3"},
    {"share into slot -1", [](KvCache& c) { c.share(-1, Pages{0}, 16); }, "slot is -1"},
    {"share a page too high",
     [](KvCache& c) {
       c.share(3, Pages{0, 8}, 32);
     },
     "page is 8, expected 0 to 7"},
    {"share a page below none",
     [](KvCache& c) {
       c.share(3, Pages{0, -2}, 32);
     },
     "page is -2"},
    {"share a hole",
     [](KvCache& c) {
       c.share(3, Pages{0, -1, 1}, 48);
     },
     "page is -1"},
    {"share without what is seen",
     [](KvCache& c) {
       c.share(3, Pages{-1, 1}, 32);
     },
     "sees position 0, but only 16 and later are held"},
    {"share a free page",
     [](KvCache& c) {
       c.share(3, Pages{0, 4}, 32);
     },
     "page 4 is free"},
    {"share a reserved page", [](KvCache& c) { c.share(3, Pages{5}, 1); }, "page 5 has 0 tokens written"},
    {"share twice the same",
     [](KvCache& c) {
       c.share(3, Pages{0, 1, 0}, 48);
     },
     "page 0 is named twice"},
    {"share more than was written",
     [](KvCache& c) {
       c.share(3, Pages{0, 1, 2}, 41);
     },
     "page 2 has 8 tokens written"},
    {"share a page that is not full",
     [](KvCache& c) {
       c.share(3, Pages{2, 0}, 17);
     },
     "page 2 has 8 tokens written, expected 16"},
    {"share too few pages", [](KvCache& c) { c.share(3, Pages{0}, 17); }, "1 pages are to be shared for 17 tokens"},
    {"share too many pages",
     [](KvCache& c) {
       c.share(3, Pages{0, 1}, 16);
     },
     "2 pages are to be shared for 16"},
    {"share past the capacity", [](KvCache& c) { c.share(3, Pages{0}, 65); }, "length is 65, expected 0 to 64"},
    {"share a negative length", [](KvCache& c) { c.share(3, Pages{}, -1); }, "length is -1"},

    {"reserve in no slot", [](KvCache& c) { c.reserve(4, Pages{4}); }, "slot is 4"},
    {"reserve a page too high",
     [](KvCache& c) {
       c.reserve(3, Pages{4, 8});
     },
     "page is 8, expected 0 to 7"},
    {"reserve a negative page",
     [](KvCache& c) {
       c.reserve(3, Pages{4, -1});
     },
     "page is -1"},
    {"reserve another's page",
     [](KvCache& c) {
       c.reserve(3, Pages{4, 0});
     },
     "page 0 is in use"},
    {"reserve a reserved page",
     [](KvCache& c) {
       c.reserve(3, Pages{4, 5});
     },
     "page 5 is in use"},
    {"reserve twice the same",
     [](KvCache& c) {
       c.reserve(3, Pages{4, 6, 4});
     },
     "page 4 is named twice"},
    {"reserve past the capacity",
     [](KvCache& c) {
       c.reserve(0, Pages{4, 6});
     },
     "slot 0 would have 5 pages"},

    {"retain a free page", [](KvCache& c) { c.retain(4); }, "page 4 is free"},
    {"retain no page", [](KvCache& c) { c.retain(8); }, "page is 8"},
    {"retain page -1", [](KvCache& c) { c.retain(-1); }, "page is -1"},
    {"retain a reserved page", [](KvCache& c) { c.retain(5); }, "nothing is written"},
    {"release a free page", [](KvCache& c) { c.release(4); }, "page 4 is free"},
    {"release a sequence's page", [](KvCache& c) { c.release(0); }, "nobody has retained it"},
    {"release no page", [](KvCache& c) { c.release(8); }, "page is 8"},
    {"holders of no page", [](KvCache& c) { (void)c.holders(-1); }, "page is -1"},

    {"fork into a live slot", [](KvCache& c) { c.fork(0, 2, 1); }, "slot 2 is in use with 3 tokens"},
    {"fork into itself", [](KvCache& c) { c.fork(0, 0, 1); }, "slot 0 is in use"},
    {"fork more than there is", [](KvCache& c) { c.fork(0, 3, 41); }, "41 tokens of slot 0 are to be forked"},
    {"fork a negative length", [](KvCache& c) { c.fork(0, 3, -1); }, "-1 tokens of slot 0"},
    {"fork no slot", [](KvCache& c) { c.fork(4, 3, 0); }, "slot is 4"},
    {"fork into no slot", [](KvCache& c) { c.fork(0, -1, 0); }, "slot is -1"},

    {"accept what is not stored",
     [](KvCache& c) {
       c.accept(0, 38, std::vector<int64_t>{0, 2});
     },
     "accepted index is 2, expected rising ones from 0 to 1"},
    {"accept twice the same",
     [](KvCache& c) {
       c.accept(0, 30, std::vector<int64_t>{1, 1});
     },
     "accepted index is 1"},
    {"accept backwards",
     [](KvCache& c) {
       c.accept(0, 30, std::vector<int64_t>{3, 2});
     },
     "accepted index is 2"},
    {"accept a negative index", [](KvCache& c) { c.accept(0, 30, std::vector<int64_t>{-1}); }, "accepted index is -1"},
    {"accept past the end", [](KvCache& c) { c.accept(0, 41, {}); }, "from position 41 of slot 0"},
    {"accept before the start", [](KvCache& c) { c.accept(0, -1, {}); }, "from position -1 of slot 0"},

    {"restore into a live slot", [](KvCache& c) { c.restore_stored(2, 0, c.read_stored(0, 0, 4)); },
     "slot 2 is in use"},
    {"restore without what is seen", [](KvCache& c) { c.restore_stored(3, 16, c.read_stored(0, 16, 4)); },
     "sees position 0"},
    {"restore nothing", [](KvCache& c) { c.restore_stored(3, 0, {}); }, "no stored tokens"},
    {"restore past the capacity", [](KvCache& c) { c.restore_stored(3, 60, c.read_stored(0, 0, 5)); },
     "its capacity is 64"},
    {"restore at a negative position", [](KvCache& c) { c.restore_stored(3, -1, c.read_stored(0, 0, 5)); },
     "from position -1 on"},
    {"restore tokens of another type",
     [](KvCache& c) {
       KvCache other = paged({.slots = 1, .capacity = 64, .dtype = DType::bf16});
       append(other, 0, 0, 4);
       c.restore_stored(3, 0, other.read_stored(0, 0, 4));
     },
     "stored keys have shape [4, 2, 40]"},

    {"a hole", [](KvCache& c) { append(c, 0, 41, 1); }, "first_position is 41, but slot 0 holds 40"},
    {"past the capacity", [](KvCache& c) { append(c, 0, 40, 25); }, "would hold 25 tokens from position 40 on"},
    {"append to a full pool", [](KvCache& c) { append(c, 0, 40, 9); },
     "1 more free pages of 16 tokens are needed; 0 of 8 are free", [](KvCache& c) { append(c, 3, 0, 48); }},
    {"a copy on writing from a full pool", [](KvCache& c) { append(c, 1, 20, 1); }, "1 more free pages",
     [](KvCache& c) { append(c, 3, 0, 48); }},
    {"restore into a full pool", [](KvCache& c) { c.restore_stored(3, 0, c.read_stored(0, 0, 1)); },
     "1 pages are needed, but 0 are free", [](KvCache& c) { append(c, 1, 20, 44); }},
    {"accept in a full pool", [](KvCache& c) { c.accept(1, 16, std::vector<int64_t>{1}); },
     "slot 1 needs 1 pages of its own to accept tokens, but 0 are free", [](KvCache& c) { append(c, 3, 0, 48); }},
    {"no tokens at once",
     [](KvCache& c) { c.check(std::vector<Span>{{.slot = 0, .first_position = 40, .count = 1}}, 0); },
     "tokens_at_once is 0"},
    {"a slot twice",
     [](KvCache& c) {
       c.check(std::vector<Span>{{.slot = 3, .count = 1}, {.slot = -1, .count = 1}, {.slot = 3, .count = 1}});
     },
     "slot 3 comes twice"},
    {"index of what is not stored", [](KvCache& c) { (void)c.index_of(0, 40); }, "from position 40 of slot 0"},
};

// [KV-11], [KV-12], [KV-20], [KV-23]
TEST(KvCachePages, RefusesBeforeAnythingChanges) {
  for (const Refused& refused : kRefused) {
    SCOPED_TRACE(refused.name);
    KvCache cache = scene();
    refused.before(cache);
    const Snapshot before = snapshot(cache);
    EXPECT_ERROR(refused.call(cache), refused.message);
    EXPECT_EQ(snapshot(cache), before);
  }
}

// Of several spans that one would fit without the others, none is stored.
TEST(KvCachePages, CountsThePagesOfAllSpansTogether) {
  KvCache cache = scene();                                                          // 3 free
  const std::vector<Span> spans = {{.slot = 0, .first_position = 40, .count = 9},   // one more
                                   {.slot = 3, .first_position = 0, .count = 33},   // three
                                   {.slot = 1, .first_position = 20, .count = 1}};  // none: page 1 is shared, so one
  EXPECT_EQ(cache.missing_pages(spans), 2);
  EXPECT_ERROR(cache.check(spans), "2 more free pages");
  EXPECT_EQ(cache.missing_pages(std::span(spans).first(1)), 0);
  EXPECT_EQ(snapshot(cache), snapshot(scene()));
}

// Of two that write to a page which both hold, only the first needs a copy.
TEST(KvCachePages, TheLastHolderOfASharedPageNeedsNoCopy) {
  KvCache cache = paged({.slots = 2, .capacity = 16, .pages = 2});
  append(cache, 0, 0, 5);
  cache.fork(0, 1, 5);
  const std::vector<Span> both = {{.slot = 0, .first_position = 5, .count = 1},
                                  {.slot = 1, .first_position = 5, .count = 1}};
  EXPECT_EQ(cache.missing_pages(both), 0);
  append(cache, 0, 5, 1, 2);
  append(cache, 1, 5, 1, 3);
  EXPECT_EQ(cache.free_pages(), 0);
}

TEST(KvCachePages, SlotsOfAContiguousCacheHaveNoPagesToGive) {
  auto cache = KvCache::contiguous({.slots = 2, .capacity = 64, .dtype = DType::f32}, layer());
  append(cache, 0, 0, 20);
  const std::vector<Refused> calls = {{"retain", [](KvCache& c) { c.retain(0); }, "holding a page"},
                                      {"release", [](KvCache& c) { c.release(0); }, "letting go of a page"},
                                      {"share", [](KvCache& c) { c.share(1, Pages{0}, 16); }, "sharing"},
                                      {"reserve", [](KvCache& c) { c.reserve(1, Pages{1}); }, "reserving"}};
  for (const Refused& refused : calls) {
    const Snapshot before = snapshot(cache);
    EXPECT_ERROR(refused.call(cache), refused.message) << refused.name;
    EXPECT_EQ(snapshot(cache), before) << refused.name;
  }
}

// ---- What windows and chunks keep ----

TEST(KvCachePages, ARingNeedsAWindowAndAChunkCacheChunks) {
  EXPECT_ERROR(KvCache::ring({.slots = 1, .capacity = 8}, layer()), "a ring needs a layer with a window");
  EXPECT_ERROR(KvCache::chunk({.slots = 1, .capacity = 8}, layer(4)), "a chunk cache needs a layer with chunks");
}

struct Kept {
  int64_t length;
  int64_t first;  // that the next token sees
  int64_t held;   // by whole pages of 16
};

// [KV-25]: after a token at position p the W - 1 last ones stay, p included, and as many more as a draft is long.
TEST(KvCachePages, AWindowKeepsWhatTheNextTokenSees) {
  const auto expect_kept = [](int64_t window, int64_t speculation, const std::vector<Kept>& all) {
    for (const KvStorage storage : {KvStorage::ring, KvStorage::paged})
      for (const Kept& kept : all) {
        SCOPED_TRACE(::testing::Message() << "window " << window << ", speculation " << speculation << ", length "
                                          << kept.length << ", storage " << static_cast<int>(storage));
        KvCache cache(
            storage,
            {.slots = 1, .capacity = 200, .dtype = DType::f32, .page_size = 16, .speculation_length = speculation},
            layer(window));
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
TEST(KvCachePages, AChunkKeepsItself) {
  const std::vector<std::pair<int64_t, int64_t>> kept = {{31, 0}, {32, 32}, {33, 32}, {63, 32}, {64, 64}, {95, 64}};
  for (const KvStorage storage : {KvStorage::chunk, KvStorage::paged})
    for (const auto& [length, held] : kept) {
      KvCache cache(storage, {.slots = 1, .capacity = 200, .dtype = DType::f32, .page_size = 16}, layer(0, 32));
      decode(cache, 0, length);
      EXPECT_EQ(cache.first_held(0), held) << length;
    }
  // A draft may reach back into the last chunk.
  KvCache cache = paged({.slots = 1, .capacity = 200, .speculation_length = 2}, 0, 32);
  decode(cache, 0, 33);
  EXPECT_EQ(cache.first_held(0), 0);
  decode(cache, 0, 34);
  EXPECT_EQ(cache.first_held(0), 32);
}

// A refused draft as long as it may be can always be taken back, and no more is promised.
TEST(KvCachePages, ADraftCanBeTakenBack) {
  for (int64_t length = 4; length < 60; ++length) {
    KvCache cache = paged({.slots = 1, .capacity = 64, .speculation_length = 3}, 5);
    decode(cache, 0, length, 4);
    EXPECT_EQ(error_of([&] { cache.truncate(0, length - 3); }), "") << length;
    EXPECT_EQ(error_of([&] { append(cache, 0, length - 3, 4); }), "") << length;
  }
  KvCache cache = paged({.slots = 1, .capacity = 64}, 4);
  decode(cache, 0, 19);
  EXPECT_ERROR(cache.truncate(0, 18), "can't go on from position 18: that token sees position 15");
  EXPECT_ERROR(append(cache, 0, 18, 1), "can't go on from position 18");
  EXPECT_ERROR(cache.fork(0, 0, 18), "in use");
  EXPECT_EQ(error_of([&] { append(cache, 0, 0, 1); }), "");  // a new sequence
}

// ---- Pages of sequences ----

// [KV-62], [KV-66], [KV-67]: place = page * page_size + offset, also of tokens that go on in another page.
TEST(KvCachePages, ATokensPlaceFollowsFromItsPage) {
  KvCache cache = paged({.slots = 4, .capacity = 160, .page_size = 32, .pages = 8});
  cache.reserve(0, Pages{0});
  cache.reserve(1, Pages{1});
  cache.reserve(2, Pages{2, 3, 4, 5});
  append(cache, 0, 0, 7);
  append(cache, 1, 0, 9);
  append(cache, 2, 0, 127);
  EXPECT_EQ(cache.index_of(0, 6), 6);
  EXPECT_EQ(cache.index_of(1, 8), 40);
  EXPECT_EQ(cache.index_of(2, 126), 190);
  EXPECT_THAT(cache.page_table(2), ElementsAre(2, 3, 4, 5));
  for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(cache.index_of(2, 62 + i), 126 + i);
  EXPECT_ERROR((void)cache.index_of(3, 7), "slot 3");  // an inactive row
}

TEST(KvCachePages, ReservedPagesAreWrittenInOrder) {
  KvCache cache = paged({.slots = 2, .capacity = 64, .pages = 8});
  cache.reserve(0, Pages{7, 2});
  EXPECT_EQ(cache.free_pages(), 6);
  EXPECT_THAT(cache.page_table(0), ElementsAre());
  EXPECT_ERROR((void)cache.read(0, 0, 1), "holds 0");
  append(cache, 0, 0, 3);
  EXPECT_THAT(cache.page_table(0), ElementsAre(7));
  append(cache, 1, 0, 16);
  append(cache, 0, 3, 40);
  EXPECT_EQ(cache.page_table(0)[1], 2);
  EXPECT_EQ(cache.free_pages(), 4);
  EXPECT_EQ(cache.index_of(0, 17), 2 * 16 + 1);
}

// A prefix cache: pages outlive their sequence, serve others, and are copied by whoever writes to them first.
TEST(KvCachePages, ARetainedPrefixIsSharedAndNotWrittenTo) {
  KvCache cache = paged({.slots = 3, .capacity = 64, .pages = 8});
  append(cache, 0, 0, 20);
  const Pages prefix = cache.page_table(0);
  const auto stored = test::bytes_of(cache.read(0, 0, 20).first);
  for (const int32_t page : prefix) cache.retain(page);
  cache.truncate(0, 0);
  EXPECT_EQ(cache.free_pages(), 6);
  cache.share(1, prefix, 20);
  cache.share(2, prefix, 18);
  EXPECT_EQ(cache.holders(prefix[1]), 3);
  append(cache, 1, 20, 1, 2);
  append(cache, 2, 18, 3, 3);
  EXPECT_EQ(cache.page_table(1)[0], prefix[0]);
  EXPECT_NE(cache.page_table(1)[1], prefix[1]);
  EXPECT_EQ(cache.holders(prefix[1]), 1);
  cache.share(0, prefix, 20);
  EXPECT_EQ(test::bytes_of(cache.read(0, 0, 20).first), stored);
  for (const int64_t slot : {0, 1, 2}) cache.truncate(slot, 0);
  EXPECT_EQ(cache.free_pages(), 6);
  for (const int32_t page : prefix) cache.release(page);
  EXPECT_EQ(cache.free_pages(), 8);
  EXPECT_ERROR(cache.share(0, prefix, 20), "is free");
}

// [KV-9]: of a draft's tokens some stay, moved together; what others hold does not change.
TEST(KvCachePages, AcceptedTokensMoveTogether) {
  for (const KvStorage storage : {KvStorage::contiguous, KvStorage::paged})
    for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
      KvCache cache(storage, {.slots = 2, .capacity = 64, .dtype = dtype, .page_size = 16}, layer());
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
  KvCache cache = paged({.slots = 1, .capacity = 64}, 4);
  decode(cache, 0, 40);
  ASSERT_EQ(cache.first_held(0), 32);
  std::vector<int64_t> indices(15);
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int64_t>(i) + 1;
  EXPECT_ERROR(cache.accept(0, 21, indices), "position 21 of slot 0 was given back");
  EXPECT_EQ(cache.length(0), 40);
}

// A sequence that is saved without what left the window, and restored into a cache with other pages.
TEST(KvCachePages, ARestoredSequenceHoldsWholePages) {
  KvCache cache = paged({.slots = 2, .capacity = 64}, 4);
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

// ---- Only live rows are touched ----

// [GAP-40] to [GAP-45], [KV-23]: in every storage, calls change the slots that they name, and -1 names none.
TEST(KvCachePages, OtherSlotsKeepEveryByte) {
  for (const KvStorage storage : {KvStorage::contiguous, KvStorage::ring, KvStorage::chunk, KvStorage::paged})
    for (const DType dtype : {DType::f32, DType::i8}) {
      SCOPED_TRACE(::testing::Message() << static_cast<int>(storage) << ' ' << name_of(dtype));
      KvCache cache(storage, {.slots = 3, .capacity = 100, .dtype = dtype, .page_size = 16}, layer(20, 32));
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

// ---- A page's next owner ----

std::vector<std::byte> attended(const KvCache& cache, int64_t slot) {
  const Span last{.slot = slot, .first_position = cache.length(slot) - 3, .count = 3};
  const Tensor queries = test::Numbers(5).tensor({3, 4, 20});
  const Tensor output(DType::f32, {3, 4, 12});
  Workspace workspace(1);
  attend(
      {.queries = queries, .spans = std::span(&last, 1), .cache = &cache, .output = output, .workspace = &workspace});
  return test::bytes_of(output);
}

// NaN, infinities and huge numbers of a sequence that is gone change no bit of whoever gets its pages, and nobody can
// read them.
TEST(KvCachePages, WhatAPageHeldBeforeIsNotSeen) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f8_e4m3, DType::i8})
    for (const float left : {kNan, kInfinity, -3e38F})
      for (const int64_t length : {3, 16, 17, 40}) {
        SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << left << ' ' << length);
        KvCache fresh = paged({.slots = 2, .capacity = 64, .dtype = dtype});
        KvCache used = paged({.slots = 2, .capacity = 64, .dtype = dtype, .pages = 4});
        Tensor keys(DType::f32, {64, 2, 20});
        Tensor values(DType::f32, {64, 2, 12});
        for (float& x : keys.elements<float>()) x = left;
        for (float& x : values.elements<float>()) x = left;
        used.append({.slot = 1, .count = 64}, keys, values);
        const Pages pages = used.page_table(1);
        used.truncate(1, 0);
        append(fresh, 0, 0, length);
        append(used, 0, 0, length);
        EXPECT_EQ(attended(used, 0), attended(fresh, 0));
        EXPECT_ERROR((void)used.read(0, length, 1), "holds");
        const Pages own = used.page_table(0);
        if (length % 16 != 0) {
          EXPECT_ERROR(used.share(1, own, length + 1), "tokens written");
        }
        for (const int32_t page : pages) {
          if (used.holders(page) > 0) continue;
          EXPECT_ERROR(used.share(1, Pages{page}, 1), "is free");
        }
      }
}

// [MASK-3]: attention to what was given back is refused, not read.
TEST(KvCachePages, AttendRefusesWhatIsNotHeld) {
  KvCache cache = paged({.slots = 1, .capacity = 64}, 4);
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

// ---- Given scales ----

// One KV head of width 4 for keys, one token.
std::vector<float> stored(const KvFormat& format, const std::vector<float>& numbers) {
  AttentionConfig config{.hidden_size = 4, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 4};
  auto cache = KvCache::contiguous({.slots = 1, .capacity = 1, .keys = format, .values = format}, config);
  const ConstTensorView rows(numbers.data(), {1, 1, 4});
  cache.append({.slot = 0, .count = 1}, rows, rows);
  const auto [keys, values] = cache.read(0, 0, 1);
  EXPECT_EQ(test::bytes_of(keys), test::bytes_of(values));
  return test::floats_of(keys);
}

KvFormat given(DType dtype, std::vector<float> scales, KvScaling scaling = KvScaling::per_tensor) {
  return {.dtype = dtype, .scaling = scaling, .scales = std::move(scales)};
}

// [KV-42]: number / scale to nearest even, cut off at the type's limits; [KV-41]: without scales they are 1.
TEST(KvCachePages, GivenScalesRoundToNearestEvenUpToTheTypesLimits) {
  using enum DType;
  EXPECT_THAT(stored(given(i8, {0.5F}), {0.25F, 0.75F, -0.25F, -1.25F}), ElementsAre(0, 1, 0, -1));
  EXPECT_THAT(stored(given(i8, {0.5F}), {63.5F, 1000, -64, -1000}), ElementsAre(63.5F, 63.5F, -64, -64));
  EXPECT_THAT(stored(given(i8, {2}), {kInfinity, -kInfinity, 253, 255.5F}), ElementsAre(254, -256, 252, 254));
  EXPECT_THAT(stored(given(i8, {}), {2.5F, 3.5F, 127.6F, -128.6F}), ElementsAre(2, 4, 127, -128));
  // Ties of the quotient: times 1/7, rounded, they would be a little more.
  EXPECT_THAT(stored(given(i8, {7}), {45.5F, 87.5F, 101.5F, -157.5F}), ElementsAre(42, 84, 98, -154));
  EXPECT_THAT(stored(given(f8_e4m3, {}), {448, 449, 1e9F, -1e9F}), ElementsAre(448, 448, 448, -448));
  EXPECT_THAT(stored(given(f8_e4m3, {2}), {896, 480, -2000, 17 * 2}), ElementsAre(896, 480, -896, 32));
  EXPECT_THAT(stored(given(f8_e4m3, {}), {17, 19, 1.0625F, 1.1875F}), ElementsAre(16, 20, 1, 1.25F));
  EXPECT_THAT(stored(given(f8_e5m2, {}), {57344, 6e4F, kInfinity, -1e9F}), ElementsAre(57344, 57344, 57344, -57344));
  EXPECT_THAT(stored(given(f8_e5m2, {0.25F}), {9 * 0.25F, 11 * 0.25F, 0, 2e4F}), ElementsAre(2, 3, 0, 14336));
  for (const DType dtype : {i8, f8_e4m3, f8_e5m2})
    for (const float number : stored(given(dtype, {1}), {1, kNan, 2, 3})) EXPECT_TRUE(std::isnan(number));
}

// [KV-43]: of keys and values apart: one, one a KV head, one a channel, or one a channel of each head.
TEST(KvCachePages, ScalesHaveTheShapeOfTheirKind) {
  AttentionConfig config{.hidden_size = 4, .num_attention_heads = 2, .num_key_value_heads = 2, .head_dim = 3};
  config.v_head_dim = 2;
  const std::vector<float> ones(12, 1.0F);
  const auto read = [&](const KvFormat& keys, const KvFormat& values) {
    auto cache = KvCache::paged({.slots = 1, .capacity = 1, .keys = keys, .values = values}, config);
    cache.append({.slot = 0, .count = 1}, ConstTensorView(ones.data(), {1, 2, 3}), {ones.data(), {1, 2, 2}});
    const auto [k, v] = cache.read(0, 0, 1);
    return std::pair{test::floats_of(k), test::floats_of(v)};
  };
  // A scale s of i8 gives 1 back as the nearest multiple of s.
  using enum KvScaling;
  const auto tensor = read(given(DType::i8, {0.75F}), given(DType::i8, {0.4F}));
  EXPECT_THAT(tensor.first, ::testing::Each(0.75F));
  EXPECT_THAT(tensor.second, ::testing::Each(0.8F));
  const auto head = read(given(DType::i8, {0.75F, 0.4F}, per_head), given(DType::i8, {0.4F, 0.75F}, per_head));
  EXPECT_THAT(head.first, ElementsAre(0.75F, 0.75F, 0.75F, 0.8F, 0.8F, 0.8F));
  EXPECT_THAT(head.second, ElementsAre(0.8F, 0.8F, 0.75F, 0.75F));
  const auto channel =
      read(given(DType::i8, {0.75F, 0.4F, 3}, per_channel), given(DType::i8, {0.75F, 0.4F, 3, 1}, per_channel));
  EXPECT_THAT(channel.first, ElementsAre(0.75F, 0.8F, 0, 0.75F, 0.8F, 0));
  EXPECT_THAT(channel.second, ElementsAre(0.75F, 0.8F, 0, 1));
}

TEST(KvCachePages, RefusesScalesThatCanNotBe) {
  const auto refusal = [](const KvFormat& keys) {
    return error_of([&] { (void)KvCache::paged({.slots = 1, .capacity = 8, .keys = keys}, layer()); });
  };
  using enum KvScaling;
  EXPECT_THAT(refusal(given(DType::i8, {1, 2})), HasSubstr("keys have 2 scales, expected 1"));
  EXPECT_THAT(refusal(given(DType::i8, {1, 2, 3}, per_head)), HasSubstr("keys have 3 scales, expected 2"));
  EXPECT_THAT(refusal(given(DType::i8, {1}, per_head)), HasSubstr("keys have 1 scales, expected 2"));
  EXPECT_THAT(refusal(given(DType::i8, {1, 2}, per_channel)),
              HasSubstr("expected 20 or one a channel of each KV head"));
  EXPECT_THAT(refusal(given(DType::i8, {1}, per_token)), HasSubstr("per_token"));
  EXPECT_THAT(refusal(given(DType::bf16, {1})), HasSubstr("dtype is bf16, which has none"));
  for (const float scale : {0.0F, -1.0F, kNan, kInfinity})
    EXPECT_THAT(refusal(given(DType::i8, {scale})), HasSubstr("expected a positive number")) << scale;
}

// [KV-43]: the largest number of a sample becomes the type's largest, and nothing is cut off.
TEST(KvCachePages, FittedScalesHoldTheirSample) {
  test::Numbers numbers(31);
  const Tensor sample = numbers.tensor({40, 2, 20});
  using enum KvScaling;
  for (const DType dtype : {DType::i8, DType::f8_e4m3, DType::f8_e5m2})
    for (const auto& [scaling, count] : {std::pair{per_tensor, 1}, {per_head, 2}, {per_channel, 40}}) {
      SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << count);
      const KvFormat format = KvFormat::fitted(dtype, scaling, sample);
      EXPECT_EQ(format.dtype, dtype);
      EXPECT_EQ(format.scaling, scaling);
      ASSERT_EQ(format.scales.size(), static_cast<size_t>(count));
      const float largest = dtype == DType::i8 ? 127.0F : dtype == DType::f8_e4m3 ? 448.0F : 57344.0F;
      std::vector<float> tops(format.scales.size());
      const auto all = sample.elements<float>();
      for (size_t i = 0; i < all.size(); ++i) {
        float& top = tops[count == 1 ? 0 : count == 2 ? i % 40 / 20 : i % 40];
        top = std::max(top, std::abs(all[i]));
      }
      for (size_t i = 0; i < tops.size(); ++i) EXPECT_FLOAT_EQ(format.scales[i] * largest, tops[i]);
      auto cache = KvCache::contiguous({.slots = 1, .capacity = 40, .dtype = DType::f32, .keys = format}, layer());
      cache.append({.slot = 0, .count = 40}, sample, numbers.tensor({40, 2, 12}));
      const Tensor back = cache.read(0, 0, 40).first;
      // Half a unit: of i8 everywhere the same, of fp8 relative to the number.
      const float half = dtype == DType::i8 ? 0.5F / 127 : dtype == DType::f8_e4m3 ? 1.0F / 16 : 1.0F / 8;
      for (size_t i = 0; i < all.size(); ++i)
        EXPECT_NEAR(back.elements<float>()[i], all[i],
                    half * 1.001F *
                        tops[count == 1   ? 0
                             : count == 2 ? i % 40 / 20
                                          : i % 40]);
    }
}

TEST(KvCachePages, FittingTakesZerosAndTheSmallestNumbers) {
  for (const float size : {0.0F, 1e-45F, 1e-40F, 3e38F})
    for (const DType dtype : {DType::i8, DType::f8_e4m3, DType::f8_e5m2}) {
      Tensor sample(DType::f32, {3, 2, 20});
      for (float& x : sample.elements<float>()) x = size;
      const KvFormat format = KvFormat::fitted(dtype, KvScaling::per_head, sample);
      EXPECT_EQ(error_of([&] { (void)KvCache::paged({.slots = 1, .capacity = 8, .keys = format}, layer()); }), "")
          << size << ' ' << name_of(dtype);
    }
  Tensor sample(DType::f32, {1, 2, 20});
  EXPECT_ERROR(KvFormat::fitted(DType::f32, KvScaling::per_head, sample), "f32 is to be fitted");
  EXPECT_ERROR(KvFormat::fitted(DType::i8, KvScaling::per_token, sample), "per token");
  EXPECT_ERROR(KvFormat::fitted(DType::i8, KvScaling::per_head, Tensor(DType::f32, {2, 20})), "[tokens, kv_heads");
  sample.elements<float>()[7] = kInfinity;
  EXPECT_ERROR(KvFormat::fitted(DType::i8, KvScaling::per_head, sample), "finite");
}

OracleMatrix matrix(const Tensor& numbers) {
  const auto elements = numbers.elements<float>();
  OracleMatrix result(numbers.shape()[0], static_cast<int64_t>(elements.size()) / numbers.shape()[0]);
  std::copy(elements.begin(), elements.end(), result.numbers.begin());
  return result;
}

void expect_attention_of_what_is_read(const KvFormat& keys, const KvFormat& values, int64_t page_size) {
  constexpr int64_t kTokens = 300;
  constexpr int64_t kQueries = 4;
  auto cache = KvCache::paged({.slots = 1, .capacity = kTokens, .keys = keys, .values = values, .page_size = page_size},
                              layer());
  append(cache, 0, 0, kTokens);
  const auto [read_keys, read_values] = cache.read(0, 0, kTokens);
  const Tensor queries = test::Numbers(41).tensor({kQueries, 4, 20});
  const Tensor output(DType::f32, {kQueries, 4, 12});
  const Tensor lse(DType::f32, {kQueries, 4});
  const Span span{.slot = 0, .first_position = kTokens - kQueries, .count = kQueries};
  Workspace workspace(1);
  attend({.queries = queries,
          .spans = std::span(&span, 1),
          .cache = &cache,
          .softmax_scale = 0.5,
          .output = output,
          .lse = lse,
          .workspace = &workspace});
  const OracleAttendInput input{.heads = 4,
                                .kv_heads = 2,
                                .queries = matrix(queries),
                                .keys = matrix(read_keys),
                                .values = matrix(read_values),
                                .scale = 0.5,
                                .sees = [](int64_t query, int64_t key) { return key <= kTokens - kQueries + query; }};
  const OracleAttended exact = oracle_attend(input);
  test::ErrorBudget budget;
  test::ErrorBudget lse_budget;
  for (int order = 0; order < test::orders_for(kQueries * 4); ++order) {
    const test::PlainAttended plain = test::plain_attend(input, order);
    for (size_t i = 0; i < plain.out.size(); ++i)
      budget.add_plain(exact.out.numbers[i], plain.out[i], plain.out_sensitivity[i]);
    for (size_t i = 0; i < plain.lse.size(); ++i)
      lse_budget.add_plain(exact.lse.numbers[i], plain.lse[i], plain.lse_sensitivity[i]);
  }
  for (size_t i = 0; i < exact.out.numbers.size(); ++i)
    budget.add_ours(exact.out.numbers[i], output.elements<float>()[i]);
  for (size_t i = 0; i < exact.lse.numbers.size(); ++i)
    lse_budget.add_ours(exact.lse.numbers[i], lse.elements<float>()[i]);
  EXPECT_TRUE(budget.holds()) << budget;
  EXPECT_TRUE(lse_budget.holds()) << lse_budget;
}

// [KV-42], [KV-43]: attention is that of the numbers that `read` gives, whatever scales they have.
TEST(KvCachePages, AttentionWithGivenScalesIsThatOfTheStoredNumbers) {
  test::Numbers numbers(42);
  const auto scales = [&](DType dtype, size_t count) {
    std::vector<float> all = numbers.floats(static_cast<int64_t>(count));
    const float largest = dtype == DType::i8 ? 127.0F : dtype == DType::f8_e4m3 ? 448.0F : 57344.0F;
    for (float& scale : all) scale = (1.5F + scale) / largest;
    return all;
  };
  using enum KvScaling;
  for (const DType dtype : {DType::i8, DType::f8_e4m3, DType::f8_e5m2})
    for (const int64_t page_size : {16, 256}) {
      SCOPED_TRACE(::testing::Message() << name_of(dtype) << ", pages of " << page_size);
      const auto of = [&](KvScaling scaling, size_t count) {
        return given(dtype, count == 0 ? std::vector<float>{} : scales(dtype, count), scaling);
      };
      expect_attention_of_what_is_read(of(per_tensor, 1), of(per_tensor, 1), page_size);
      expect_attention_of_what_is_read(of(per_head, 2), of(per_head, 2), page_size);
      expect_attention_of_what_is_read(of(per_channel, 20), of(per_channel, 12), page_size);
      expect_attention_of_what_is_read(of(per_channel, 40), of(per_channel, 24), page_size);
      expect_attention_of_what_is_read(of(per_tensor, 0), {.dtype = DType::bf16}, page_size);
      expect_attention_of_what_is_read({.dtype = DType::f16}, of(per_head, 2), page_size);
    }
}

// ---- Memory ----

// [KV-25]: a window's cache is as large as its windows, not as its sequences, and its calls always find room.
TEST(KvCachePages, AThousandWindowsTakeAThousandWindowsOfMemory) {
  constexpr int64_t kSlots = 1000;
  constexpr int64_t kWindow = 128;
  constexpr int64_t kCapacity = 2000;
  AttentionConfig config{.hidden_size = 2, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1};
  config.sliding_window = kWindow;
  for (const KvStorage storage : {KvStorage::ring, KvStorage::paged}) {
    KvCache cache(storage, {.slots = kSlots, .capacity = kCapacity, .dtype = DType::f32}, config);
    // Beyond the windows: what a call of 512 tokens adds, to as many sequences as it may.
    const int64_t spare = KvCache::kTokensAtOnce + 256 * cache.page_size();
    EXPECT_LE(cache.pages() * cache.page_size(), kSlots * kWindow * 3 / 2 + spare);
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
    EXPECT_LE((cache.pages() - cache.free_pages()) * cache.page_size(), kSlots * kWindow * 3 / 2);
  }
}

// A call of 512 tokens over any number of sequences, all of which are as full as can be.
TEST(KvCachePages, CallsOfManySequencesFindRoom) {
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
TEST(KvCachePages, RingsHaveRoomForTheDraftsOfAllSequences) {
  constexpr int64_t kSlots = 300;
  AttentionConfig config{.hidden_size = 2, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1};
  config.sliding_window = 30;
  KvCache cache = KvCache::ring(
      {.slots = kSlots, .capacity = 200, .dtype = DType::f32, .page_size = 16, .speculation_length = 2}, config);
  for (int64_t slot = 0; slot < kSlots; ++slot) decode(cache, slot, 46, 46);  // the last token of page 0 is held
  for (int64_t slot = 0; slot < kSlots; ++slot) append(cache, slot, 46, 3);
  EXPECT_EQ(cache.page_table(0).size(), 4U);
}

// A copy of a shared page that leaves the window during the call makes room for what comes later in it.
TEST(KvCachePages, ACopyThatIsGivenBackIsCountedAsFree) {
  KvCache cache = paged({.slots = 3, .capacity = 64, .pages = 3}, 4);
  append(cache, 0, 0, 20);
  cache.fork(0, 1, 20);
  cache.fork(0, 2, 20);
  const Span span{.slot = 0, .first_position = 20, .count = 40};
  EXPECT_EQ(cache.missing_pages(std::span(&span, 1), 16), 0);
  for (const int64_t end : {36, 52, 60}) {
    append(cache, 0, cache.length(0), end - cache.length(0));
    cache.trim(0);
  }
  EXPECT_EQ(cache.free_pages(), 1);
}

// Forking takes no page and copies none; freeing gives back those that nobody else holds.
TEST(KvCachePages, ForksCostAsManyPagesAsTheyWrite) {
  KvCache cache = paged({.slots = 9, .capacity = 160, .pages = 18});
  append(cache, 0, 0, 150);
  ASSERT_EQ(cache.free_pages(), 8);
  for (int64_t slot = 1; slot < 9; ++slot) cache.fork(0, slot, 150);
  EXPECT_EQ(cache.free_pages(), 8);
  for (int64_t slot = 0; slot < 9; ++slot) append(cache, slot, 150, 1, static_cast<uint64_t>(slot));
  EXPECT_EQ(cache.free_pages(), 0);  // eight copies of the last page; the last one needs none
  for (int64_t slot = 0; slot < 8; ++slot) cache.truncate(slot, 0);
  EXPECT_EQ(cache.free_pages(), 8);
  cache.truncate(8, 0);
  EXPECT_EQ(cache.free_pages(), 18);
}

}  // namespace
}  // namespace regard
