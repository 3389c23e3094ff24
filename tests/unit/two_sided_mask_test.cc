#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "regard/attention.h"
#include "regard/mask.h"
#include "support/numbers.h"
#include "support/test_layer.h"
#include "support/visible_keys.h"

// Windows and chunks that reach to either side of a token.
namespace regard {
namespace {

using test::expect_every_path_follows;
using test::Positions;
using test::revealing;
using test::Rule;
using test::seen;

Rule two_sided(int64_t size) {
  return [size](int64_t i, int64_t j) { return std::abs(i - j) <= size / 2; };
}

// [MASK-25]: as ModernBERT's local_attention, half of it on either side.
TEST(Mask, TwoSidedWindow_SeesHalfOfItOnEitherSide) {
  EXPECT_EQ(seen({.is_causal = false, .sliding_window = 4}, 5, 9), (Positions{3, 4, 5, 6, 7}));
  EXPECT_EQ(seen({.is_causal = false, .sliding_window = 4}, 0, 9), (Positions{0, 1, 2}));
  EXPECT_EQ(seen({.is_causal = false, .sliding_window = 4}, 8, 9), (Positions{6, 7, 8}));
  constexpr int64_t kLength = 9;
  for (const int64_t size : {int64_t{1}, int64_t{2}, int64_t{3}, kLength - 1, kLength, kLength + 1, 2 * kLength}) {
    SCOPED_TRACE(size);
    AttentionConfig config = revealing(kLength);
    config.is_causal = false;
    config.sliding_window = size;
    expect_every_path_follows(config, kLength, 0, two_sided(size));
  }
}

// [MASK-26]
TEST(Mask, TwoSidedChunk_SeesAllOfItsChunk) {
  constexpr int64_t kLength = 9;
  for (const int64_t size : {1, 2, 4, 9, 10}) {
    SCOPED_TRACE(size);
    AttentionConfig config = revealing(kLength);
    config.is_causal = false;
    config.attention_chunk_size = size;
    expect_every_path_follows(config, kLength, 0, [size](int64_t i, int64_t j) { return i / size == j / size; });
  }
}

// Where tokens see later ones, all of a call's are in the cache before one of them attends: also in a ring, which then
// holds its window and no more.
TEST(Mask, TwoSidedWindow_LongTextsFitARing) {
  constexpr int64_t kLength = 1500;
  AttentionConfig config = revealing(4);
  config.is_causal = false;
  config.sliding_window = 20;
  config.inference.seq_len = 2048;
  const auto layer = test::transparent_layer(config);
  const std::vector<float> zeros(kLength);
  const Tensor hidden = test::hidden_rows(layer.config, zeros, zeros, test::Numbers(3).floats(4 * kLength));
  const std::vector<Span> spans = {{.slot = 0, .count = kLength / 2}, {.slot = 1, .count = kLength / 2}};
  AttentionInput input;
  input.hidden_states = hidden;
  input.spans = spans;
  const auto expected = test::bytes_of(layer.load().forward(input).hidden_states);
  for (const KvStorage storage : {KvStorage::ring, KvStorage::paged}) {
    KvCache cache(storage, {.slots = 2, .capacity = kLength / 2, .page_size = 16}, layer.config);
    input.cache = &cache;
    EXPECT_EQ(test::bytes_of(layer.load().forward(input).hidden_states), expected);
    EXPECT_GE(cache.first_held(0), kLength / 2 - 10 - 16);
  }
}

}  // namespace
}  // namespace regard
