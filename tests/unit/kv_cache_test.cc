#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "regard/cache.h"
#include "regard/error.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/small_cache.h"
#include "support/test_layer.h"

namespace regard {
namespace {

using test::error_of;
using test::random_layer;
using test::two_head_layer;
using ::testing::HasSubstr;

KvCache cache_of(int64_t slots, int64_t capacity, DType dtype = DType::f32) {
  return KvCache::contiguous({.slots = slots, .capacity = capacity, .dtype = dtype}, two_head_layer());
}

struct Tokens {
  Tensor keys, values;

  [[nodiscard]] Tokens from(int64_t first, int64_t count) const {
    return {convert(keys.view().slice(0, first, count), DType::f32),
            convert(values.view().slice(0, first, count), DType::f32)};
  }
  friend bool operator==(const Tokens& a, const Tokens& b) {
    return test::bytes_of(a.keys) == test::bytes_of(b.keys) && test::bytes_of(a.values) == test::bytes_of(b.values);
  }
};

Tokens random_tokens(int64_t count, uint64_t seed) {
  test::Numbers numbers(seed);
  return {numbers.tensor({count, 2, 20}), numbers.tensor({count, 2, 12})};
}

void append(KvCache& cache, int64_t slot, int64_t first, const Tokens& tokens) {
  cache.append({.slot = slot, .first_position = first, .count = tokens.keys.shape()[0]}, tokens.keys, tokens.values);
}

Tokens read(const KvCache& cache, int64_t slot, int64_t first, int64_t count) {
  auto [keys, values] = cache.read(slot, first, count);
  return {keys, values};
}

Tokens read_all(const KvCache& cache, int64_t slot) { return read(cache, slot, 0, cache.length(slot)); }

// [KV-5]: read gives what the type keeps of each number.
TEST(KvCache, GivesBackWhatWasAppended) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const int64_t capacity : {1, 15, 16, 17, 300, 600}) {
      SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << capacity);
      KvCache cache = cache_of(2, capacity, dtype);
      const Tokens tokens = random_tokens(capacity, 61);
      append(cache, 1, 0, tokens);
      EXPECT_EQ(cache.length(1), capacity);
      EXPECT_EQ(cache.length(0), 0);
      const Tokens kept{convert(convert(tokens.keys, dtype), DType::f32),
                        convert(convert(tokens.values, dtype), DType::f32)};
      EXPECT_EQ(read_all(cache, 1), kept);
      EXPECT_EQ(read(cache, 1, capacity / 2, capacity - capacity / 2),
                kept.from(capacity / 2, capacity - capacity / 2));
    }
}

// Runs that end inside, at and after the pages of 256 tokens.
TEST(KvCache, AppendingInRunsEqualsAppendingAtOnce) {
  const Tokens tokens = random_tokens(600, 62);
  KvCache cache = cache_of(1, 600);
  int64_t first = 0;
  for (const int64_t count : {1, 15, 240, 1, 300, 43}) {
    append(cache, 0, first, tokens.from(first, count));
    first += count;
    ASSERT_EQ(cache.length(0), first);
  }
  EXPECT_EQ(read_all(cache, 0), tokens);
}

// Two tokens of 4 bits share each byte of a key panel: one that replaces another must leave its neighbour alone, and
// so must the next head, slot and page.
TEST(KvCache, NarrowTokensAreReplacedOneByOne) {
  for (const DType dtype : {DType::i8, DType::i4}) {
    SCOPED_TRACE(name_of(dtype));
    const Tokens old = random_tokens(300, 83);
    const Tokens fresh = random_tokens(300, 84);
    KvCache expected = cache_of(1, 300, dtype);
    append(expected, 0, 0, fresh);
    KvCache cache = cache_of(3, 300, dtype);
    for (int64_t slot = 0; slot < 3; ++slot) append(cache, slot, 0, old);
    const Tokens before = read_all(cache, 0);
    for (int64_t token = 0; token < 300; ++token) {
      append(cache, 1, token, fresh.from(token, 1));
      ASSERT_EQ(read_all(cache, 1), read(expected, 0, 0, token + 1));
    }
    EXPECT_EQ(read_all(cache, 0), before);
    EXPECT_EQ(read_all(cache, 2), before);
  }
}

TEST(KvCache, TruncatedTokensAreForgottenAndReplaced) {
  KvCache cache = cache_of(1, 40);
  const Tokens old = random_tokens(30, 63);
  const Tokens fresh = random_tokens(5, 64);
  append(cache, 0, 0, old);
  cache.truncate(0, 20);
  EXPECT_EQ(cache.length(0), 20);
  EXPECT_THROW((void)cache.read(0, 20, 1), Error);
  append(cache, 0, 20, fresh);
  EXPECT_EQ(read(cache, 0, 0, 20), old.from(0, 20));
  EXPECT_EQ(read(cache, 0, 20, 5), fresh);
  cache.truncate(0, 25);
  EXPECT_EQ(cache.length(0), 25);
  EXPECT_THAT(error_of([&] { cache.truncate(0, 26); }), HasSubstr("length is 26, but slot 0 holds 25"));
  EXPECT_THAT(error_of([&] { cache.truncate(0, -1); }), HasSubstr("length is -1"));
  EXPECT_THROW(cache.truncate(1, 0), Error);
}

// A write below the length replaces what follows: a draft that was refused, or a slot that is used anew.
TEST(KvCache, AppendingBelowTheLengthDropsWhatFollows) {
  KvCache cache = cache_of(1, 40);
  const Tokens old = random_tokens(30, 65);
  const Tokens fresh = random_tokens(3, 66);
  append(cache, 0, 0, old);
  append(cache, 0, 10, fresh);
  EXPECT_EQ(cache.length(0), 13);
  EXPECT_EQ(read(cache, 0, 0, 10), old.from(0, 10));
  EXPECT_EQ(read(cache, 0, 10, 3), fresh);
  append(cache, 0, 0, fresh);
  EXPECT_EQ(cache.length(0), 3);
  EXPECT_EQ(read_all(cache, 0), fresh);
  EXPECT_THROW((void)cache.read(0, 3, 1), Error);
}

// [GAP-40], [GAP-42], [GAP-43]
TEST(KvCache, OtherSlotsKeepEveryByte) {
  KvCache cache = cache_of(3, 20);
  const Tokens first = random_tokens(20, 67);
  const Tokens last = random_tokens(7, 68);
  append(cache, 0, 0, first);
  append(cache, 2, 0, last);
  append(cache, 1, 0, random_tokens(20, 69));
  append(cache, 1, 5, random_tokens(9, 70));
  append(cache, -1, 0, random_tokens(20, 71));
  cache.truncate(1, 0);
  EXPECT_EQ(read_all(cache, 0), first);
  EXPECT_EQ(read_all(cache, 2), last);
}

// [GAP-42]: -1 does not wrap to the last slot.
TEST(KvCache, SlotMinusOneIsIgnored) {
  KvCache cache = cache_of(2, 20);
  append(cache, -1, 0, random_tokens(3, 72));
  append(cache, -1, 1'000'000, random_tokens(30, 73));
  EXPECT_EQ(cache.length(0), 0);
  EXPECT_EQ(cache.length(1), 0);
}

struct Refused {
  Span span;
  std::string message;
};

// Slot 0 holds 5 of 20 tokens, slot 1 none.
const std::vector<Refused> kRefused = {
    {{.slot = 2, .count = 1}, "slot is 2, expected -1 (none) or 0 to 1"},
    {{.slot = -2, .count = 1}, "slot is -2"},
    {{.slot = 0, .first_position = 5, .count = 0}, "count 0"},
    {{.slot = 0, .first_position = 5, .count = -1}, "count -1"},
    {{.slot = 0, .first_position = 6, .count = 1}, "first_position is 6, but slot 0 holds 5"},
    {{.slot = 1, .first_position = 1, .count = 1}, "first_position is 1, but slot 1 holds 0"},
    {{.slot = 0, .first_position = -1, .count = 1}, "first_position is -1"},
    {{.slot = 0, .first_position = 5, .count = 16}, "would hold 16 tokens from position 5 on, but its capacity is 20"},
    {{.slot = 1, .first_position = 0, .count = 21}, "would hold 21 tokens from position 0 on"},
    {{.slot = 0, .first_position = 5, .count = std::numeric_limits<int64_t>::max()}, "from position 5 on"},
    {{.slot = 1, .first_position = std::numeric_limits<int64_t>::max(), .count = 1}, "first_position is"},
};

TEST(KvCache, RefusesSlotsHolesAndWhatDoesNotFit) {
  KvCache cache = cache_of(2, 20);
  const Tokens stored = random_tokens(5, 74);
  append(cache, 0, 0, stored);
  for (const Refused& refused : kRefused) {
    const Tokens tokens = random_tokens(std::clamp<int64_t>(refused.span.count, 0, 30), 75);
    EXPECT_THAT(error_of([&] { cache.check(std::span(&refused.span, 1)); }), HasSubstr(refused.message));
    EXPECT_THAT(error_of([&] { cache.append(refused.span, tokens.keys, tokens.values); }), HasSubstr(refused.message));
  }
  EXPECT_EQ(read_all(cache, 0), stored);
  EXPECT_EQ(cache.length(1), 0);
}

TEST(KvCache, ExactlyFullIsNotTooFull) {
  KvCache cache = cache_of(1, 20);
  append(cache, 0, 0, random_tokens(19, 76));
  append(cache, 0, 19, random_tokens(1, 77));
  EXPECT_EQ(cache.length(0), 20);
  EXPECT_THROW(append(cache, 0, 20, random_tokens(1, 78)), Error);
}

// [KV-29]
TEST(KvCache, RefusesASlotThatComesTwice) {
  const KvCache cache = cache_of(2, 20);
  const std::vector<Span> twice = {{.slot = 1, .count = 1}, {.slot = 0, .count = 1}, {.slot = 1, .count = 1}};
  EXPECT_THAT(error_of([&] { cache.check(twice); }), HasSubstr("slot 1 comes twice"));
  const std::vector<Span> skipped = {{.slot = -1, .count = 1}, {.slot = 0, .count = 1}, {.slot = -1, .count = 1}};
  EXPECT_EQ(error_of([&] { cache.check(skipped); }), "");
}

TEST(KvCache, WritesNothingWhenShapesOrTypesDoNotFit) {
  KvCache cache = cache_of(1, 20);
  const Tokens stored = random_tokens(4, 79);
  const Tokens other = random_tokens(4, 80);
  append(cache, 0, 0, stored);
  const Span span{.slot = 0, .first_position = 0, .count = 4};
  const auto refusal = [&](const Tensor& keys, const Tensor& values) {
    return error_of([&] { cache.append(span, keys, values); });
  };
  EXPECT_THAT(refusal(Tensor(DType::f32, {3, 2, 20}), other.values), HasSubstr("keys have shape [3, 2, 20]"));
  EXPECT_THAT(refusal(other.keys, Tensor(DType::f32, {4, 2, 20})), HasSubstr("values have shape [4, 2, 20]"));
  EXPECT_THAT(refusal(convert(other.keys, DType::bf16), other.values), HasSubstr("bf16"));
  EXPECT_THAT(refusal(other.keys, convert(other.values, DType::f16)), HasSubstr("f16"));
  EXPECT_EQ(read_all(cache, 0), stored);
}

TEST(KvCache, ReadsOnlyWhatIsStored) {
  KvCache cache = cache_of(2, 20);
  append(cache, 0, 0, random_tokens(4, 81));
  EXPECT_EQ(read(cache, 0, 4, 0).keys.shape(), (Shape{0, 2, 20}));
  EXPECT_THROW((void)cache.read(0, 0, 5), Error);
  EXPECT_THROW((void)cache.read(0, 5, 0), Error);
  EXPECT_THROW((void)cache.read(0, -1, 2), Error);
  EXPECT_THROW((void)cache.read(0, 1, std::numeric_limits<int64_t>::max()), Error);
  EXPECT_THROW((void)cache.read(1, 0, 1), Error);
  EXPECT_THROW((void)cache.read(-1, 0, 0), Error);
  EXPECT_THROW((void)cache.length(2), Error);
}

// Narrow types add two scales, of key and value, a head.
TEST(KvCache, CountsTheBytesOfScales) {
  for (const DType dtype : {DType::i8, DType::f8_e4m3, DType::f8_e5m2})
    EXPECT_EQ(cache_of(1, 10, dtype).bytes_per_token(), 2 * (20 + 16 + 8)) << name_of(dtype);
  EXPECT_EQ(cache_of(1, 10, DType::i4).bytes_per_token(), 2 * (10 + 8 + 8));
}

// [KV-1], [KV-2], [KV-5], [CFG-44], [CFG-48], [CFG-59]
TEST(KvCache, OfALayerHasTheSizesAndTypeOfItsConfig) {
  AttentionConfig config = two_head_layer();
  config.inference.kv_cache_batch_size = 3;
  config.inference.max_length = 500;
  config.inference.torch_dtype = DType::f16;
  const Attention attention = random_layer(config, 84).load();
  const KvCache cache = attention.make_cache(KvStorage::contiguous, attention.cache_options());
  EXPECT_EQ(cache.slots(), 3);
  EXPECT_EQ(cache.capacity(), 500);
  EXPECT_EQ(cache.key_format().dtype, DType::f16);
  EXPECT_EQ(cache.num_key_value_heads(), 2);
  EXPECT_EQ(cache.head_dim(), 20);
  EXPECT_EQ(cache.v_head_dim(), 12);
  EXPECT_EQ(cache.bytes_per_token(), 2 * (20 + 16) * 2);  // values in panels of 16
}

TEST(KvCache, KnowsHeadsAndMaskOfItsLayerAndNoMore) {
  const KvCache cache = KvCache::ring({.capacity = 100, .page_size = 16},
                                      {.num_key_value_heads = 3, .head_dim = 8, .mask = {.sliding_window = 20}});
  EXPECT_EQ(cache.slots(), 1);
  EXPECT_EQ(cache.key_format().dtype, DType::f32);
  EXPECT_EQ(cache.num_key_value_heads(), 3);
  EXPECT_EQ(cache.v_head_dim(), 8);
  EXPECT_EQ(cache.first_seen(50), 31);
}

TEST(KvCache, RefusesALayerThatCannotBe) {
  const auto refusal = [](const KvSpec& spec) {
    return error_of([&] { (void)KvCache::contiguous({.capacity = 8}, spec); });
  };
  EXPECT_THAT(refusal({.head_dim = 8}), HasSubstr("num_key_value_heads is 0"));
  EXPECT_THAT(refusal({.num_key_value_heads = 1}), HasSubstr("head_dim is 0"));
  EXPECT_THAT(refusal({.num_key_value_heads = 1, .head_dim = 8, .v_head_dim = -1}), HasSubstr("v_head_dim is -1"));
  EXPECT_THAT(refusal({.num_key_value_heads = 1, .head_dim = 8, .mask = {.sliding_window = -1}}),
              HasSubstr("sliding_window is -1"));
}

TEST(KvCache, RefusesSizesAndTypesOutOfRange) {
  const auto refusal = [](const KvCacheOptions& options) {
    return error_of([&] { (void)KvCache::contiguous(options, two_head_layer()); });
  };
  EXPECT_THAT(refusal({.slots = -1, .capacity = 8}), HasSubstr("slots is -1"));
  EXPECT_THAT(refusal({.slots = 0, .capacity = 8}), HasSubstr("slots is 0"));
  EXPECT_THAT(refusal({.slots = 1, .capacity = -8}), HasSubstr("capacity is -8"));
  EXPECT_THAT(refusal({.slots = 1}), HasSubstr("capacity is 0, expected 1"));
  EXPECT_THAT(refusal({.slots = 1, .capacity = 8, .dtype = DType::i32}),
              HasSubstr("dtype is i32 for keys, expected f32, bf16, f16, f8_e4m3, f8_e5m2, i8 or i4"));
  EXPECT_THAT(refusal({.slots = int64_t{1} << 31, .capacity = int64_t{1} << 31}), HasSubstr("address space"));
}

// Memory is only touched as it is written: of 2 GB, a few tokens' pages.
TEST(KvCache, AnEmptyCacheCostsNothing) {
  const auto peak_kilobytes = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  const auto before = peak_kilobytes();
  KvCache cache = cache_of(1 << 10, 1 << 13);
  const Tokens tokens = random_tokens(2, 82);
  append(cache, 1023, 0, tokens);
  EXPECT_EQ(read_all(cache, 1023), tokens);
  EXPECT_LT(peak_kilobytes() - before, 1 << 17);
}

}  // namespace
}  // namespace regard
