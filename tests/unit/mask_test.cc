#include "regard/mask.h"

#include <gtest/gtest.h>

#include <vector>

#include "regard/attention.h"
#include "support/numbers.h"
#include "support/test_layer.h"
#include "support/visible_keys.h"

namespace regard {
namespace {

using test::by_rule;
using test::non_zeros;
using test::one_hot_rows;
using test::Positions;
using test::revealing;
using test::Rule;
using test::seen;

Rule causal_window(int64_t size) {
  return [size](int64_t i, int64_t j) { return j <= i && j >= i - size + 1; };
}
Rule causal_chunk(int64_t size) {
  return [size](int64_t i, int64_t j) { return j <= i && i / size == j / size; };
}

// The visible keys of a sequence that comes in pieces of `step` tokens.
std::vector<Positions> seen_by_layer(AttentionConfig mask, int64_t length, int64_t step) {
  mask.inference.seq_len = length;
  const auto layer = test::transparent_layer(mask);
  const Attention attention = layer.load();
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = length, .dtype = DType::f32}, attention.config());
  std::vector<Positions> rows;
  for (int64_t first = 0; first < length; first += step) {
    const Span span{.slot = 0, .first_position = first, .count = std::min(step, length - first)};
    const Tensor hidden = one_hot_rows(layer.config, first, span.count);
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = std::span(&span, 1);
    input.cache = &cache;
    const auto output = attention.forward(input);
    for (const Positions& row : non_zeros(layer.config, output.hidden_states)) rows.push_back(row);
  }
  return rows;
}

// At once, in pieces and token by token, around the sizes that matter for `length` tokens.
void expect_layer_follows(const AttentionConfig& mask, int64_t length, const Rule& rule) {
  for (const int64_t step : {length, int64_t{1}, int64_t{3}})
    EXPECT_EQ(seen_by_layer(mask, length, step), by_rule(length, rule)) << "step " << step;
}

// [MASK-1], [MASK-10]
TEST(Mask, Causal_SeesItselfAndEverythingBefore) {
  EXPECT_EQ(seen({}, 0, 5), (Positions{0}));
  EXPECT_EQ(seen({}, 3, 5), (Positions{0, 1, 2, 3}));
  expect_layer_follows(revealing(7), 7, [](int64_t i, int64_t j) { return j <= i; });
}

// [MASK-3]
TEST(Mask, SlidingWindow_SeesItselfAndTheWindowMinusOneBefore) {
  EXPECT_EQ(seen({.sliding_window = 2}, 3, 5), (Positions{2, 3}));
  EXPECT_EQ(seen({.sliding_window = 2}, 0, 5), (Positions{0}));
  EXPECT_EQ(seen({.sliding_window = 1}, 4, 5), (Positions{4}));
  constexpr int64_t kLength = 7;
  for (const int64_t size : {int64_t{1}, int64_t{2}, kLength - 1, kLength, kLength + 1}) {
    SCOPED_TRACE(size);
    AttentionConfig config = revealing(kLength);
    config.sliding_window = size;
    expect_layer_follows(config, kLength, causal_window(size));
    for (int64_t i = 0; i < kLength; ++i)
      EXPECT_EQ(seen({.sliding_window = size}, i, kLength),
                by_rule(kLength, causal_window(size))[static_cast<size_t>(i)]);
  }
}

// [MASK-3]: a window of the length of the text and more is plain causal attention, to the last bit.
TEST(Mask, SlidingWindow_AsWideAsTheTextEqualsCausalBitwise) {
  AttentionConfig config{.hidden_size = 24, .num_attention_heads = 4, .num_key_value_heads = 2};
  config.rotary_emb = RotaryConfig{};
  const Tensor hidden = test::Numbers(3).tensor({300, 24});
  AttentionInput input;
  input.hidden_states = hidden;
  const auto causal = test::bytes_of(test::random_layer(config, 1).load().forward(input).hidden_states);
  for (const int64_t size : {300, 301, 100000}) {
    config.sliding_window = size;
    EXPECT_EQ(test::bytes_of(test::random_layer(config, 1).load().forward(input).hidden_states), causal) << size;
  }
}

// [MASK-13]: with the token itself, a decode step sees exactly W positions once there are so many.
TEST(Mask, SlidingWindow_DecodeSeesExactlyTheWindow) {
  const Mask mask{.sliding_window = 4};
  EXPECT_EQ(seen(mask, 2, 3), (Positions{0, 1, 2}));
  EXPECT_EQ(seen(mask, 3, 4), (Positions{0, 1, 2, 3}));
  EXPECT_EQ(seen(mask, 5, 6), (Positions{2, 3, 4, 5}));
  EXPECT_EQ(mask.visible(1'000'000, 1'000'001).size(), 4);
}

// [MASK-4], [MASK-15]
TEST(Mask, Chunk_SeesItsOwnChunkUpToItself) {
  const Mask mask{.attention_chunk_size = 2};
  EXPECT_EQ(seen(mask, 0, 4), (Positions{0}));
  EXPECT_EQ(seen(mask, 1, 4), (Positions{0, 1}));
  EXPECT_EQ(seen(mask, 2, 4), (Positions{2}));
  EXPECT_EQ(seen(mask, 3, 4), (Positions{2, 3}));
  EXPECT_EQ(seen({.attention_chunk_size = 4}, 5, 6), (Positions{4, 5}));
  for (const int64_t size : {1, 2, 6, 7, 8}) {
    SCOPED_TRACE(size);
    AttentionConfig config = revealing(7);
    config.attention_chunk_size = size;
    expect_layer_follows(config, 7, causal_chunk(size));
  }
}

// [GAP-27]: the reference lets the chunk win silently.
TEST(Mask, WindowAndChunk_Intersect) {
  const Mask mask{.sliding_window = 3, .attention_chunk_size = 4};
  EXPECT_EQ(seen(mask, 5, 9), (Positions{4, 5}));
  EXPECT_EQ(seen(mask, 7, 9), (Positions{5, 6, 7}));
  AttentionConfig config = revealing(9);
  config.sliding_window = 3;
  config.attention_chunk_size = 4;
  expect_layer_follows(config, 9, [](int64_t i, int64_t j) { return causal_window(3)(i, j) && causal_chunk(4)(i, j); });
}

// [MASK-6]: in one call every token sees all of them; a token that comes later is seen by those after it only.
TEST(Mask, Bidirectional_SeesTheWholeSequence) {
  EXPECT_EQ(seen({.is_causal = false}, 1, 4), (Positions{0, 1, 2, 3}));
  AttentionConfig config = revealing(5);
  config.is_causal = false;
  EXPECT_EQ(seen_by_layer(config, 5, 5), by_rule(5, [](int64_t, int64_t) { return true; }));
  EXPECT_EQ(seen_by_layer(config, 5, 3), by_rule(5, [](int64_t i, int64_t j) { return i >= 3 || j < 3; }));
}

// [MASK-7]: prior keys all, the piece's own keys causally; that is what causal means.
TEST(Mask, WindowedContextEncoding_ChangesNothingThatIsSeen) {
  for (const int64_t piece : {1, 2, 3, 7, 8}) {
    AttentionConfig config = revealing(7);
    config.inference.windowed_context_encoding_size = piece;
    EXPECT_EQ(seen_by_layer(config, 7, 7), by_rule(7, [](int64_t i, int64_t j) { return j <= i; })) << piece;
    config.sliding_window = 3;
    EXPECT_EQ(seen_by_layer(config, 7, 7), by_rule(7, causal_window(3))) << piece;
  }
}

// Windows and chunks whose edges lie before, on and after the kernels' blocks of 256 keys.
TEST(Mask, LongSequences_SeeExactlyTheSameSets) {
  constexpr int64_t kLength = 530;
  for (const int64_t size : {255, 256, 257, 300}) {
    SCOPED_TRACE(size);
    AttentionConfig config = revealing(kLength);
    config.sliding_window = size;
    EXPECT_EQ(seen_by_layer(config, kLength, kLength), by_rule(kLength, causal_window(size)));
    config.sliding_window = 0;
    config.attention_chunk_size = size;
    EXPECT_EQ(seen_by_layer(config, kLength, 100), by_rule(kLength, causal_chunk(size)));
  }
}

// [MASK-24], its worked example: three requests of 2, 3 and 1 new tokens with 4, 5 and 4 keys, in one call.
TEST(Mask, ConcatenatedRequests_SeeTheirOwnKeysOnly) {
  const auto layer = test::transparent_layer(revealing(13));
  const Attention attention = layer.load();
  KvCache cache = KvCache::contiguous({.slots = 3, .capacity = 8, .dtype = DType::f32}, attention.config());
  const auto run = [&](const std::vector<Span>& spans, const std::vector<int64_t>& first_columns) {
    int64_t tokens = 0;
    for (const Span& span : spans) tokens += span.count;
    Tensor hidden(DType::f32, {tokens, layer.config.hidden_size});
    int64_t row = 0;
    for (size_t s = 0; s < spans.size(); ++s) {
      const Tensor own = one_hot_rows(layer.config, first_columns[s], spans[s].count);
      for (int64_t i = 0; i < spans[s].count; ++i, ++row)
        std::ranges::copy(own.view()[i].elements<float>(), hidden.view()[row].as<float>());
    }
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = spans;
    input.cache = &cache;
    return non_zeros(layer.config, attention.forward(input).hidden_states);
  };
  (void)run({{.slot = 0, .count = 2}, {.slot = 1, .count = 2}, {.slot = 2, .count = 3}}, {0, 4, 9});
  const auto rows = run({{.slot = 0, .first_position = 2, .count = 2},
                         {.slot = 1, .first_position = 2, .count = 3},
                         {.slot = 2, .first_position = 3, .count = 1}},
                        {2, 6, 12});
  const std::vector<Positions> expected = {{0, 1, 2},    {0, 1, 2, 3},    {4, 5, 6},
                                           {4, 5, 6, 7}, {4, 5, 6, 7, 8}, {9, 10, 11, 12}};
  EXPECT_EQ(rows, expected);
}

TEST(Interval, IntersectionsMayBeEmpty) {
  EXPECT_EQ((Interval{2, 5}.intersect({4, 9})), (Interval{4, 5}));
  EXPECT_TRUE((Interval{2, 5}.intersect({6, 9}).empty()));
  EXPECT_EQ((Interval{2, 5}.intersect({6, 9}).size()), 0);
  EXPECT_EQ((Interval{2, 5}.size()), 4);
  EXPECT_TRUE((Interval{2, 5}.contains(2)) && (Interval{2, 5}.contains(5)));
  EXPECT_FALSE((Interval{2, 5}.contains(1)) || (Interval{2, 5}.contains(6)));
  EXPECT_TRUE(Interval{}.empty());
}

// [MASK-5]: layers that share a workspace each follow their own mask.
TEST(Mask, LayersOfDifferentMasksMixFreely) {
  constexpr int64_t kLength = 9;
  Workspace workspace(1);
  const auto expect_follows = [&](int64_t window, int64_t chunk, const Rule& rule) {
    AttentionConfig config = revealing(kLength);
    config.sliding_window = window;
    config.attention_chunk_size = chunk;
    config.inference.seq_len = kLength;
    const auto layer = test::transparent_layer(config);
    const Tensor hidden = one_hot_rows(layer.config, 0, kLength);
    AttentionInput input;
    input.hidden_states = hidden;
    input.workspace = &workspace;
    EXPECT_EQ(non_zeros(layer.config, layer.load().forward(input).hidden_states), by_rule(kLength, rule));
  };
  for (int round = 0; round < 2; ++round) {
    expect_follows(0, 0, [](int64_t i, int64_t j) { return j <= i; });
    expect_follows(3, 0, causal_window(3));
    expect_follows(0, 4, causal_chunk(4));
  }
}

// [CFG-68]: pieces are no larger than what a ring has room for, whatever is asked.
TEST(Mask, LargePiecesFitARing) {
  constexpr int64_t kLength = 1500;
  AttentionConfig config = revealing(4);
  config.sliding_window = 20;
  config.inference.seq_len = 2048;
  config.inference.windowed_context_encoding_size = 1024;
  const auto layer = test::transparent_layer(config);
  const std::vector<float> zeros(kLength);
  const Tensor hidden = test::hidden_rows(layer.config, zeros, zeros, test::Numbers(3).floats(4 * kLength));
  KvCache ring = KvCache::ring({.slots = 1, .capacity = 2048, .dtype = DType::f32}, layer.config);
  const Span span{.slot = 0, .first_position = 0, .count = kLength};
  Workspace workspace(1);
  AttentionInput input;
  input.hidden_states = hidden;
  input.workspace = &workspace;
  const auto expected = test::bytes_of(layer.load().forward(input).hidden_states);
  input.cache = &ring;
  input.spans = {&span, 1};
  EXPECT_EQ(test::bytes_of(layer.load().forward(input).hidden_states), expected);
}

// What a query sees and which queries see a key are one relation; no end decreases; reach is the most to look back.
TEST(Mask, VisibleAndSeenByAreTheSameRelation) {
  constexpr int64_t kLength = 12;
  for (const bool is_causal : {true, false})
    for (const int64_t window : {0, 1, 2, 3, 7, 12, 30})
      for (const int64_t chunk : {0, 1, 4, 30})
        for (const int64_t prefix : {0, 1, 5, 12}) {
          if (!is_causal && prefix > 0) continue;
          const Mask mask{.is_causal = is_causal, .sliding_window = window, .attention_chunk_size = chunk};
          SCOPED_TRACE(mask.description() + ", prefix " + std::to_string(prefix));
          Interval before;
          int64_t farthest = 0;
          for (int64_t query = 0; query < kLength; ++query) {
            const Interval visible = mask.visible(query, kLength, prefix);
            EXPECT_TRUE(visible.contains(query));
            EXPECT_GE(visible.first, before.first);
            EXPECT_GE(visible.last, before.last);
            EXPECT_EQ(visible.first, mask.first_seen(query));
            farthest = std::max(farthest, query - visible.first + 1);
            before = visible;
            for (int64_t key = 0; key < kLength; ++key)
              EXPECT_EQ(visible.contains(key), mask.seen_by(key, kLength, prefix).contains(query)) << query << key;
          }
          EXPECT_EQ(mask.reach().has_value(), window > 0 || chunk > 0);
          EXPECT_EQ(farthest, std::min(kLength, mask.reach().value_or(kLength)));
        }
}

TEST(Mask, DescribesItself) {
  EXPECT_EQ(Mask{}.description(), "causal");
  EXPECT_EQ((Mask{.is_causal = false, .sliding_window = 7}).description(), "bidirectional, window 7");
  EXPECT_EQ((Mask{.sliding_window = 7, .attention_chunk_size = 9}).limits(), "window 7, chunk 9");
}

}  // namespace
}  // namespace regard
