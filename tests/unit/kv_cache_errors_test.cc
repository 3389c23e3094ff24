// What a cache refuses, each before anything changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
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
using test::paged_cache;
using test::Snapshot;
using test::snapshot;
using test::two_head_layer;
using Pages = std::vector<int32_t>;

// Slot 0 holds 40 tokens in pages 0, 1, 2; slot 1 the first 20 of them; slot 2 had 3 in page 3 and reserves page 5;
// slot 3 is empty. Pages 4, 6 and 7 are free.
KvCache scene() {
  KvCache cache = paged_cache({.slots = 4, .capacity = 64, .pages = 8});
  append(cache, 0, 0, 40);
  cache.fork(0, 1, 20);
  cache.block_tables().reserve(2, Pages{3});
  append(cache, 2, 0, 3);
  cache.block_tables().reserve(2, Pages{5});
  return cache;
}

struct Refused {
  const char* name;
  std::function<void(KvCache&)> call;
  const char* message;
  std::function<void(KvCache&)> before = [](KvCache&) {};
};

const std::vector<Refused> kRefused = {
    {"share into a live slot", [](KvCache& c) { c.block_tables().share(0, Pages{0}, 16); },
     "slot 0 is in use with 40 tokens"},
    {"share into a reserved slot", [](KvCache& c) { c.block_tables().share(2, Pages{0}, 16); },
     "slot 2 is in use with 0 tokens",
     [](KvCache& c) {
       c.truncate(2, 0);
       c.block_tables().reserve(2, Pages{7});
     }},
    {"share into no slot", [](KvCache& c) { c.block_tables().share(4, Pages{0}, 16); }, "slot is 4, expected 0 to 3"},
    {"share into slot -1", [](KvCache& c) { c.block_tables().share(-1, Pages{0}, 16); }, "slot is -1"},
    {"share a page too high",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{0, 8}, 32);
     },
     "page is 8, expected 0 to 7"},
    {"share a page below none",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{0, -2}, 32);
     },
     "page is -2"},
    {"share a hole",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{0, -1, 1}, 48);
     },
     "page is -1"},
    {"share without what is seen",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{-1, 1}, 32);
     },
     "sees position 0, but only 16 and later are held"},
    {"share a free page",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{0, 4}, 32);
     },
     "page 4 is free"},
    {"share a reserved page", [](KvCache& c) { c.block_tables().share(3, Pages{5}, 1); },
     "page 5 has 0 tokens written"},
    {"share twice the same",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{0, 1, 0}, 48);
     },
     "page 0 is named twice"},
    {"share more than was written",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{0, 1, 2}, 41);
     },
     "page 2 has 8 tokens written"},
    {"share a page that is not full",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{2, 0}, 17);
     },
     "page 2 has 8 tokens written, expected 16"},
    {"share too few pages", [](KvCache& c) { c.block_tables().share(3, Pages{0}, 17); },
     "1 pages are to be shared for 17 tokens"},
    {"share too many pages",
     [](KvCache& c) {
       c.block_tables().share(3, Pages{0, 1}, 16);
     },
     "2 pages are to be shared for 16"},
    {"share past the capacity", [](KvCache& c) { c.block_tables().share(3, Pages{0}, 65); },
     "length is 65, expected 0 to 64"},
    {"share a negative length", [](KvCache& c) { c.block_tables().share(3, Pages{}, -1); }, "length is -1"},

    {"reserve in no slot", [](KvCache& c) { c.block_tables().reserve(4, Pages{4}); }, "slot is 4"},
    {"reserve a page too high",
     [](KvCache& c) {
       c.block_tables().reserve(3, Pages{4, 8});
     },
     "page is 8, expected 0 to 7"},
    {"reserve a negative page",
     [](KvCache& c) {
       c.block_tables().reserve(3, Pages{4, -1});
     },
     "page is -1"},
    {"reserve another's page",
     [](KvCache& c) {
       c.block_tables().reserve(3, Pages{4, 0});
     },
     "page 0 is in use"},
    {"reserve a reserved page",
     [](KvCache& c) {
       c.block_tables().reserve(3, Pages{4, 5});
     },
     "page 5 is in use"},
    {"reserve twice the same",
     [](KvCache& c) {
       c.block_tables().reserve(3, Pages{4, 6, 4});
     },
     "page 4 is named twice"},
    {"reserve past the capacity",
     [](KvCache& c) {
       c.block_tables().reserve(0, Pages{4, 6});
     },
     "slot 0 would have 5 pages"},

    {"retain a free page", [](KvCache& c) { c.block_tables().retain(4); }, "page 4 is free"},
    {"retain no page", [](KvCache& c) { c.block_tables().retain(8); }, "page is 8"},
    {"retain page -1", [](KvCache& c) { c.block_tables().retain(-1); }, "page is -1"},
    {"retain a reserved page", [](KvCache& c) { c.block_tables().retain(5); }, "nothing is written"},
    {"release a free page", [](KvCache& c) { c.block_tables().release(4); }, "page 4 is free"},
    {"release a sequence's page", [](KvCache& c) { c.block_tables().release(0); }, "nobody has retained it"},
    {"release no page", [](KvCache& c) { c.block_tables().release(8); }, "page is 8"},
    {"holders of no page", [](KvCache& c) { (void)c.block_tables().reference_count(-1); }, "page is -1"},

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
       KvCache other = paged_cache({.slots = 1, .capacity = 64, .dtype = DType::bf16});
       append(other, 0, 0, 4);
       c.restore_stored(3, 0, other.read_stored(0, 0, 4));
     },
     "stored keys have shape [4, 2, 40]"},

    {"append stored tokens after a hole",
     [](KvCache& c) { c.append_stored({.slot = 0, .first_position = 41, .count = 1}, c.read_stored(0, 0, 1)); },
     "first_position is 41, but slot 0 holds 40"},
    {"append fewer stored tokens than said",
     [](KvCache& c) { c.append_stored({.slot = 0, .first_position = 40, .count = 2}, c.read_stored(0, 0, 1)); },
     "stored keys have shape [1, 2, 80] and dtype u8, expected [2, 2, 80]"},
    {"append stored tokens to a full pool",
     [](KvCache& c) { c.append_stored({.slot = 0, .first_position = 40, .count = 9}, c.read_stored(0, 0, 9)); },
     "1 more free pages of 16 tokens are needed; 0 of 8 are free", [](KvCache& c) { append(c, 3, 0, 48); }},

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
    {"index of what is not stored", [](KvCache& c) { (void)c.block_tables().slot_mapping(0, 40); },
     "from position 40 of slot 0"},
};

// [KV-11], [KV-12], [KV-20], [KV-23]
TEST(KvCacheErrors, RefusesBeforeAnythingChanges) {
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
TEST(KvCacheErrors, CountsThePagesOfAllSpansTogether) {
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
TEST(KvCacheErrors, TheLastHolderOfASharedPageNeedsNoCopy) {
  KvCache cache = paged_cache({.slots = 2, .capacity = 16, .pages = 2});
  append(cache, 0, 0, 5);
  cache.fork(0, 1, 5);
  const std::vector<Span> both = {{.slot = 0, .first_position = 5, .count = 1},
                                  {.slot = 1, .first_position = 5, .count = 1}};
  EXPECT_EQ(cache.missing_pages(both), 0);
  append(cache, 0, 5, 1, 2);
  append(cache, 1, 5, 1, 3);
  EXPECT_EQ(cache.block_tables().free_pages(), 0);
}

TEST(KvCacheErrors, SlotsOfAContiguousCacheHaveNoPagesToGive) {
  auto cache = KvCache::contiguous({.slots = 2, .capacity = 64, .dtype = DType::f32}, two_head_layer());
  append(cache, 0, 0, 20);
  const std::vector<Refused> calls = {
      {"retain", [](KvCache& c) { c.block_tables().retain(0); }, "holding a page"},
      {"release", [](KvCache& c) { c.block_tables().release(0); }, "letting go of a page"},
      {"share", [](KvCache& c) { c.block_tables().share(1, Pages{0}, 16); }, "sharing"},
      {"reserve", [](KvCache& c) { c.block_tables().reserve(1, Pages{1}); }, "reserving"}};
  for (const Refused& refused : calls) {
    const Snapshot before = snapshot(cache);
    EXPECT_ERROR(refused.call(cache), refused.message) << refused.name;
    EXPECT_EQ(snapshot(cache), before) << refused.name;
  }
}

}  // namespace
}  // namespace regard
