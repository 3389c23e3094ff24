#include "regard/model_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "regard/attention_config.h"
#include "regard/block_table.h"
#include "support/error_of.h"
#include "support/text_cache.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

constexpr int64_t kPage = 16;
constexpr int64_t kWindow = 20;

AttentionConfig layer(int64_t window = 0) {
  AttentionConfig config{.hidden_size = 8, .num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 4};
  config.sliding_window = window;
  return config;
}

struct Sizes {
  int64_t slots = 4;
  int64_t capacity = 256;
  int64_t pages = 0;
  bool windowed = false;  // whether every other layer has a window
};

ModelCache cache_of(const Sizes& sizes) {
  std::vector<KvCache> layers;
  const KvCacheOptions options{
      .slots = sizes.slots, .capacity = sizes.capacity, .dtype = DType::f32, .page_size = kPage, .pages = sizes.pages};
  layers.push_back(KvCache::paged(options, layer()));
  layers.push_back(KvCache::paged(options, layer(sizes.windowed ? kWindow : 0)));
  return {std::move(layers), true};
}

std::vector<int32_t> text(int64_t count, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

void run(ModelCache& cache, int64_t slot, std::span<const int32_t> tokens, int64_t at_once = 1000) {
  ASSERT_TRUE(test::run_text(cache, slot, tokens, at_once));
}

ModelCache::Opened opened(ModelCache& cache, std::span<const int32_t> tokens, uint64_t salt = 0) {
  const auto sequence = cache.open(tokens, salt);
  EXPECT_TRUE(sequence.has_value());
  return sequence.value_or(ModelCache::Opened{});
}

// A sequence that comes, runs and goes.
void pass(ModelCache& cache, std::span<const int32_t> tokens, uint64_t salt = 0) {
  const auto sequence = opened(cache, tokens, salt);
  run(cache, sequence.slot, tokens);
  cache.close(sequence.slot);
}

TEST(ModelCache, SharesTheWholePagesOfACommonPrefix) {
  ModelCache cache = cache_of({});
  const auto first = text(100);
  const auto a = opened(cache, first);
  EXPECT_EQ(a.length, 0);
  run(cache, a.slot, first);
  auto second = text(70);
  second.push_back(-5);
  second.insert(second.end(), first.begin() + 71, first.end());
  const auto b = opened(cache, second);
  EXPECT_EQ(b.length, 64);
  EXPECT_EQ(cache.layers()[0].block_tables().page_of(b.slot, 3), cache.layers()[0].block_tables().page_of(a.slot, 3));
  EXPECT_EQ(test::wrong_contents(cache, b.slot, std::span(second).first(64)), std::nullopt);
  run(cache, b.slot, second);
  EXPECT_EQ(test::wrong_contents(cache, b.slot, second), std::nullopt);
  EXPECT_EQ(test::wrong_contents(cache, a.slot, first), std::nullopt);
  // Also once its owner is gone.
  cache.close(a.slot);
  const auto c = opened(cache, first);
  EXPECT_EQ(c.length, 96);
  EXPECT_EQ(test::wrong_contents(cache, c.slot, std::span(first).first(96)), std::nullopt);
  EXPECT_EQ(cache.stats().asked_tokens, 300);
  EXPECT_EQ(cache.stats().shared_tokens, 160);
}

// The last token has to run to give logits.
TEST(ModelCache, LeavesTheLastTokenToRun) {
  ModelCache cache = cache_of({});
  pass(cache, text(64));
  EXPECT_EQ(opened(cache, text(64)).length, 48);
  EXPECT_EQ(opened(cache, text(65)).length, 64);
  EXPECT_EQ(opened(cache, {}).length, 0);
}

TEST(ModelCache, SharesGeneratedTextToo) {
  ModelCache cache = cache_of({});
  const auto tokens = text(40);
  const auto a = opened(cache, std::span(tokens).first(5));
  run(cache, a.slot, tokens, 1);
  EXPECT_EQ(opened(cache, tokens).length, 32);
}

TEST(ModelCache, TenantsWithDifferentSaltsShareNothing) {
  ModelCache cache = cache_of({});
  pass(cache, text(64), 1);
  EXPECT_EQ(opened(cache, text(64), 2).length, 0);
  EXPECT_EQ(opened(cache, text(64)).length, 0);
  EXPECT_EQ(opened(cache, text(64), 1).length, 48);
}

// The same pages of tokens after another beginning are another prefix.
TEST(ModelCache, APageOnlyCountsAfterTheSameTokens) {
  ModelCache cache = cache_of({});
  pass(cache, text(64));
  std::vector<int32_t> other(16, 9);
  const auto middle = text(48, 16);
  other.insert(other.end(), middle.begin(), middle.end());
  EXPECT_EQ(opened(cache, other).length, 0);
}

TEST(ModelCache, ForgetsTheLeastRecentlyUsedPrefixFirst) {
  ModelCache cache = cache_of({.pages = 12});
  pass(cache, text(64, 0));
  pass(cache, text(64, 1000));
  pass(cache, text(64, 2000));
  EXPECT_EQ(cache.stats().cached_pages, 12);
  cache.close(opened(cache, text(65, 0)).slot);  // used again
  pass(cache, text(32, 3000));
  EXPECT_EQ(cache.stats().evicted_pages, 2);
  EXPECT_EQ(cache.stats().cached_pages, 12);
  EXPECT_EQ(opened(cache, text(65, 0)).length, 64);
  EXPECT_EQ(opened(cache, text(65, 2000)).length, 64);
  // The end of a prefix goes before its beginning.
  EXPECT_EQ(opened(cache, text(64, 1000)).length, 32);
}

TEST(ModelCache, KeepsPrefixesThatLiveSequencesUse) {
  ModelCache cache = cache_of({.pages = 8});
  const auto a = text(64);
  const auto sequence = opened(cache, a);
  run(cache, sequence.slot, a);
  pass(cache, text(32, 1000));
  const Span too_much{.slot = opened(cache, text(80, 2000)).slot, .first_position = 0, .count = 80};
  EXPECT_FALSE(cache.make_room({&too_much, 1}));
  EXPECT_EQ(test::wrong_contents(cache, sequence.slot, a), std::nullopt);
  const Span fits{.slot = too_much.slot, .first_position = 0, .count = 64};
  EXPECT_TRUE(cache.make_room({&fits, 1}));
  EXPECT_EQ(test::wrong_contents(cache, sequence.slot, a), std::nullopt);
}

// What has left a window stays cached as well, until its memory is needed.
TEST(ModelCache, PrefixesOfWindowLayersAreTakenUpAtAnyPage) {
  ModelCache cache = cache_of({.windowed = true});
  const auto tokens = text(160);
  const auto a = opened(cache, tokens);
  run(cache, a.slot, tokens, 64);
  EXPECT_LE(cache.layers()[1].first_held(a.slot), 160 - kWindow + 1);
  EXPECT_GT(cache.layers()[1].first_held(a.slot), 160 - kWindow - kPage);
  for (const auto& [length, shared] :
       {std::pair<int64_t, int64_t>{160, 144}, {128, 112}, {65, 64}, {60, 48}, {161, 160}}) {
    auto prompt = text(length);
    const auto b = opened(cache, prompt);
    EXPECT_EQ(b.length, shared) << length;
    run(cache, b.slot, prompt);
    EXPECT_EQ(test::wrong_contents(cache, b.slot, prompt), std::nullopt) << length;
    cache.close(b.slot);
  }
}

// Nothing is left of a prefix that all layers have lost.
TEST(ModelCache, WithWindowsAloneThereAreNoMorePrefixesThanPages) {
  std::vector<KvCache> layers;
  for (const int64_t window : {20, 40})
    layers.push_back(
        KvCache::paged({.slots = 2, .capacity = 256, .dtype = DType::f32, .page_size = kPage}, layer(window)));
  ModelCache cache(std::move(layers), true);
  const int64_t pages = cache.layers()[0].block_tables().pages() + cache.layers()[1].block_tables().pages();
  for (int32_t i = 0; i < 3 * pages; ++i) pass(cache, text(48, 100 * i), static_cast<uint64_t>(i % 5));
  EXPECT_GT(cache.stats().evicted_pages, pages);
  EXPECT_LE(cache.stats().cached_pages, pages);
}

// A sequence holds nothing at the end of a chunk, and commits as little.
TEST(ModelCache, CommitsNoPagesThatNobodyHolds) {
  std::vector<KvCache> layers;
  AttentionConfig chunks = layer();
  chunks.attention_chunk_size = kPage;
  layers.push_back(
      KvCache::paged({.slots = 2, .capacity = 64, .dtype = DType::f32, .page_size = kPage, .pages = 6}, chunks));
  ModelCache cache(std::move(layers), true);
  for (int32_t i = 0; i < 20; ++i) {
    auto own = text(2 * kPage, 1000 * i);
    const auto a = opened(cache, own);
    run(cache, a.slot, own);
    for (int32_t other = 0; other < 4; ++other) pass(cache, text(2 * kPage, 1000 * i + 100 * other + 100));
    cache.commit(a.slot, own);
    cache.close(a.slot);
  }
  EXPECT_LE(cache.stats().cached_pages, cache.layers()[0].block_tables().pages());
}

// Appending below the length goes back, too, and nobody tells the cache.
TEST(ModelCache, CommitsOtherTokensAfterGoingBackInTheLayers) {
  ModelCache cache = cache_of({});
  const auto tokens = text(48);
  const auto a = opened(cache, tokens);
  run(cache, a.slot, tokens);
  for (KvCache& layer : cache.layers()) layer.truncate(a.slot, 20);
  auto other = text(20);
  for (int32_t i = 0; i < 60; ++i) other.push_back(700 + i);
  run(cache, a.slot, other);
  // Nobody has computed this text beyond its common part with the first one.
  auto mixed = tokens;
  mixed.insert(mixed.end(), other.begin() + 48, other.end());
  EXPECT_EQ(opened(cache, mixed).length, 48);
  other.push_back(1);
  const auto b = opened(cache, other);
  EXPECT_EQ(b.length, 80);
  EXPECT_EQ(test::wrong_contents(cache, b.slot, std::span(other).first(80)), std::nullopt);
}

// A tree that deep is no recursion.
TEST(ModelCache, HoldsTheLongestTexts) {
  constexpr int64_t kLong = int64_t{1} << 19;
  constexpr int64_t kPiece = 512;
  std::vector<KvCache> layers;
  for (const int64_t window : {0, 20})
    layers.push_back(
        KvCache::paged({.slots = 2, .capacity = kLong, .dtype = DType::i8, .page_size = kPage}, layer(window)));
  ModelCache cache(std::move(layers), true);
  const auto tokens = text(kLong);
  const auto a = opened(cache, tokens);
  const Tensor rows(DType::f32, {kPiece, 1, 4});
  for (int64_t end = kPiece; end <= kLong; end += kPiece) {
    const Span span{.slot = a.slot, .first_position = end - kPiece, .count = kPiece};
    ASSERT_TRUE(cache.make_room({&span, 1}));
    for (KvCache& each : cache.layers()) each.append(span, rows, rows);
    if (end % (64 * kPiece) == 0) cache.commit(a.slot, tokens);
  }
  cache.close(a.slot);
  EXPECT_EQ(cache.stats().cached_pages, kLong / kPage);
}

// In a full window pool, prefixes lose their pages of the window layers but stay usable where others have them.
TEST(ModelCache, WindowPagesGoFirstWhereTheirPoolIsFull) {
  ModelCache cache = cache_of({.slots = 1, .capacity = 2048, .windowed = true});
  const int64_t pool = cache.layers()[1].block_tables().pages();
  for (int32_t i = 0; i < 2 * pool; ++i) pass(cache, text(48, 100 * i));
  EXPECT_GT(cache.stats().evicted_pages, 0);
  EXPECT_EQ(opened(cache, text(49, static_cast<int32_t>(100 * (2 * pool - 1)))).length, 48);
}

TEST(ModelCache, ForksGoTheirOwnWays) {
  ModelCache cache = cache_of({});
  const auto tokens = text(40);
  const auto a = opened(cache, tokens);
  run(cache, a.slot, tokens);
  const auto b = cache.fork(a.slot, 35);
  ASSERT_TRUE(b.has_value());
  auto other = text(35);
  for (int32_t i = 0; i < 20; ++i) other.push_back(500 + i);
  run(cache, *b, other);
  EXPECT_EQ(test::wrong_contents(cache, *b, other), std::nullopt);
  EXPECT_EQ(test::wrong_contents(cache, a.slot, tokens), std::nullopt);
}

// After a roll back the pages that were committed are still what they were.
TEST(ModelCache, RollingBackLeavesCommittedPrefixesAlone) {
  ModelCache cache = cache_of({});
  const auto tokens = text(64);
  const auto a = opened(cache, tokens);
  run(cache, a.slot, tokens);
  cache.truncate(a.slot, 20);
  auto other = text(20);
  for (int32_t i = 0; i < 44; ++i) other.push_back(700 + i);
  run(cache, a.slot, other);
  EXPECT_EQ(test::wrong_contents(cache, a.slot, other), std::nullopt);
  const auto b = opened(cache, text(65));
  EXPECT_EQ(b.length, 64);
  EXPECT_EQ(test::wrong_contents(cache, b.slot, tokens), std::nullopt);
  auto asked = other;
  asked.push_back(1);
  EXPECT_EQ(opened(cache, asked).length, 64);
}

TEST(ModelCache, AcceptsTheSameTokensInAllLayers) {
  ModelCache cache = cache_of({});
  const auto tokens = text(20);
  const auto a = opened(cache, tokens);
  run(cache, a.slot, tokens);
  cache.accept(a.slot, 15, std::vector<int64_t>{0, 2, 3});
  for (const KvCache& layer : cache.layers()) {
    ASSERT_EQ(layer.length(a.slot), 18);
    const size_t index = static_cast<size_t>(&layer - cache.layers().data());
    EXPECT_EQ(layer.read(a.slot, 17, 1).first.elements<float>()[0],
              test::number_of(std::span(tokens).first(19), index));
  }
}

// What accepting gives back to the prefixes is memory to spare again.
TEST(ModelCache, PagesThatAcceptingGivesBackCanBeForgotten) {
  ModelCache cache = cache_of({.pages = 8});
  const auto a = opened(cache, text(64));
  run(cache, a.slot, text(64));
  const auto b = opened(cache, text(64, 1000));
  run(cache, b.slot, text(64, 1000));
  const Span more{.slot = b.slot, .first_position = 64, .count = 48};
  EXPECT_FALSE(cache.make_room({&more, 1}));
  cache.accept(a.slot, 16, {});
  EXPECT_TRUE(cache.make_room({&more, 1}));
}

// A call that appends all its tokens at once needs pages for all of them, also where a window sees few.
TEST(ModelCache, RoomDependsOnHowMuchComesAtOnce) {
  ModelCache cache = cache_of({.slots = 1, .capacity = 1024, .windowed = true});
  const Span span{.slot = opened(cache, text(640)).slot, .first_position = 0, .count = 640};
  EXPECT_TRUE(cache.make_room({&span, 1}));
  EXPECT_FALSE(cache.make_room({&span, 1}, 640));
}

TEST(ModelCache, HandsOutEachSlotOnce) {
  ModelCache cache = cache_of({.slots = 2});
  const auto a = opened(cache, text(3));
  const auto b = opened(cache, text(3));
  EXPECT_NE(a.slot, b.slot);
  EXPECT_FALSE(cache.open(text(3)).has_value());
  EXPECT_FALSE(cache.fork(a.slot, 0).has_value());
  EXPECT_EQ(cache.free_slots(), 0);
  cache.close(a.slot);
  EXPECT_EQ(opened(cache, text(3)).slot, a.slot);
}

TEST(ModelCache, RefusesWhatCannotBe) {
  ModelCache cache = cache_of({.windowed = true});
  EXPECT_THAT(error_of([&] { cache.close(1); }), HasSubstr("no sequence is open in slot 1"));
  EXPECT_THAT(error_of([&] { (void)cache.length(-1); }), HasSubstr("slot -1"));
  const auto a = opened(cache, text(100));
  run(cache, a.slot, text(100));
  EXPECT_THAT(error_of([&] { cache.truncate(a.slot, 101); }), HasSubstr("holds 100"));
  // Layer 0 could go back so far, but layer 1 not: neither does.
  EXPECT_THAT(error_of([&] { cache.truncate(a.slot, 50); }), HasSubstr("layer 1 only holds"));
  EXPECT_THAT(error_of([&] { (void)cache.fork(a.slot, 50); }), HasSubstr("layer 1 only holds"));
  EXPECT_THAT(error_of([&] { cache.accept(a.slot, 50, std::vector<int64_t>{0, 1}); }), HasSubstr("can't go on"));
  EXPECT_EQ(cache.layers()[0].length(a.slot), 100);
  EXPECT_EQ(cache.free_slots(), 3);
  cache.layers()[1].block_tables().reserve(1,
                                           std::vector<int32_t>{cache.layers()[1].block_tables().pages() > 9 ? 9 : 0});
  EXPECT_THAT(error_of([&] { (void)cache.fork(a.slot, 100); }), HasSubstr("slot 1 is in use"));
  EXPECT_EQ(cache.layers()[0].length(1), 0);
  EXPECT_EQ(cache.free_slots(), 3);
  EXPECT_THAT(error_of([&] { cache.commit(a.slot, text(99)); }), HasSubstr("99 tokens are committed"));
  cache.layers()[1].truncate(a.slot, 99);
  EXPECT_THAT(error_of([&] { cache.commit(a.slot, text(100)); }),
              HasSubstr("99 tokens in layer 1, but 100 in layer 0"));
  const auto make = [](const KvCacheOptions& options, KvStorage storage, bool prefixes) {
    return error_of([&] {
      std::vector<KvCache> layers;
      layers.push_back(KvCache::paged({.slots = 2, .capacity = 64}, layer()));
      layers.emplace_back(storage, options, layer());
      (void)ModelCache(std::move(layers), prefixes);
    });
  };
  EXPECT_THAT(make({.slots = 3, .capacity = 64}, KvStorage::paged, false), HasSubstr("layer 1 has 3 slots"));
  EXPECT_THAT(make({.slots = 2, .capacity = 64}, KvStorage::contiguous, true), HasSubstr("layer 1 is not paged"));
  EXPECT_THAT(make({.slots = 2, .capacity = 64, .page_size = 64}, KvStorage::paged, true), HasSubstr("pages of 64"));
  EXPECT_EQ(make({.slots = 2, .capacity = 64}, KvStorage::contiguous, false), "");
  EXPECT_THAT(error_of([] { (void)ModelCache({}, false); }), HasSubstr("no layers"));
}

}  // namespace
}  // namespace regard
