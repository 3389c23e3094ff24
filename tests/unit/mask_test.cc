#include "regard/mask.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "regard/attend.h"
#include "regard/attention.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/test_layer.h"
#include "support/thread_ranks.h"

namespace regard {
namespace {

using Positions = std::vector<int64_t>;
using Rule = std::function<bool(int64_t query, int64_t key)>;

Positions members(Interval interval) {
  Positions positions;
  for (int64_t position = interval.first; position <= interval.last; ++position) positions.push_back(position);
  return positions;
}

Positions seen(const Mask& mask, int64_t position, int64_t length) { return members(mask.visible(position, length)); }

// What the rule lets each of `length` queries see.
std::vector<Positions> by_rule(int64_t length, const Rule& rule) {
  std::vector<Positions> rows(static_cast<size_t>(length));
  for (int64_t query = 0; query < length; ++query)
    for (int64_t key = 0; key < length; ++key)
      if (rule(query, key)) rows[static_cast<size_t>(query)].push_back(key);
  return rows;
}

Rule causal_window(int64_t size) {
  return [size](int64_t i, int64_t j) { return j <= i && j >= i - size + 1; };
}
Rule causal_chunk(int64_t size) {
  return [size](int64_t i, int64_t j) { return j <= i && i / size == j / size; };
}

// Which keys weigh in each row of a layer's output. All scores are equal and the value of token j is 1 at element j
// and 0 elsewhere, so that the output itself is the list of the visible keys. `columns` is the width of a value.
AttentionConfig revealing(int64_t columns) {
  return {.num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 1, .v_head_dim = columns};
}

Tensor one_hot_rows(const AttentionConfig& config, int64_t first, int64_t count) {
  const auto tokens = static_cast<size_t>(count);
  std::vector<float> values(tokens * static_cast<size_t>(config.v_head_dim));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i * config.v_head_dim + first + i)] = 1.0F;
  return test::hidden_rows(config, std::vector<float>(tokens), std::vector<float>(tokens), values);
}

std::vector<Positions> non_zeros(const AttentionConfig& config, const Tensor& output) {
  std::vector<Positions> rows(static_cast<size_t>(output.shape()[0]));
  const auto heads = test::attended_heads(config, output);
  for (size_t i = 0; i < heads.size(); ++i)
    if (heads[i] != 0.0F)
      rows[i / static_cast<size_t>(config.v_head_dim)].push_back(static_cast<int64_t>(i) % config.v_head_dim);
  return rows;
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

Rule two_sided(int64_t size) {
  return [size](int64_t i, int64_t j) { return std::abs(i - j) <= size / 2; };
}
// The first `prefix` tokens see each other, as far as the window lets them look back; others are causal.
Rule with_prefix(int64_t prefix, int64_t window) {
  return
      [=](int64_t i, int64_t j) { return (j <= i || (i < prefix && j < prefix)) && (window == 0 || i - j < window); };
}

// One sequence in one call, whose first `prefix` tokens see each other.
class OneCall {
 public:
  OneCall(const AttentionConfig& mask, int64_t length, int64_t prefix) : length_(length), prefix_(prefix) {
    AttentionConfig config = mask;
    config.inference.seq_len = length + 2;
    layer_ = test::transparent_layer(config);
    hidden_ = one_hot_rows(layer_.config, 0, length);
  }

  [[nodiscard]] std::vector<Positions> without_cache() const { return run(layer_.load(), nullptr); }
  [[nodiscard]] std::vector<Positions> through(KvStorage storage) const {
    KvCache cache(storage, {.capacity = length_, .page_size = 16}, layer_.config);
    return run(layer_.load(), &cache);
  }
  // A row between a row of another length and one without tokens, with padding on the left.
  [[nodiscard]] std::vector<Positions> padded() const {
    const int64_t width = layer_.config.hidden_size;
    Tensor rows(DType::f32, {3, length_ + 2, width});
    Tensor real(DType::i32, {3, length_ + 2});
    *real.view()[0][0].as<int32_t>() = 1;
    for (int64_t i = 0; i < length_; ++i) {
      std::ranges::copy(hidden_.view()[i].elements<float>(), rows.view()[1][i + 2].as<float>());
      *real.view()[1][i + 2].as<int32_t>() = 1;
    }
    const std::vector<int64_t> prefixes = {0, prefix_, 0};
    PaddedAttentionInput input;
    input.hidden_states = rows;
    input.attention_mask = real;
    input.prefixes = prefixes;
    const Tensor out = layer_.load().forward(input).hidden_states;
    Tensor packed(DType::f32, {length_, width});
    std::ranges::copy(out.view()[1].slice(0, 2, length_).elements<float>(), packed.elements<float>().begin());
    return non_zeros(layer_.config, packed);
  }
  // Without projections.
  [[nodiscard]] std::vector<Positions> attended() const {
    const AttentionConfig& c = layer_.config;
    KvCache cache = KvCache::paged({.capacity = length_, .page_size = 16}, c);
    Tensor values(DType::f32, {length_, 1, c.v_head_dim});
    for (int64_t i = 0; i < length_; ++i) values.view()[i][0].as<float>()[i] = 1.0F;
    cache.append({.count = length_}, Tensor(DType::f32, {length_, 1, 1}), values);
    const Tensor queries(DType::f32, {length_, 1, 1});
    const Tensor out(DType::f32, {length_, 1, c.v_head_dim});
    const Span span{.count = length_, .prefix = prefix_};
    attend({.queries = queries, .spans = {&span, 1}, .cache = &cache, .mask = Mask::of(c), .output = out.view()});
    std::vector<Positions> rows(static_cast<size_t>(length_));
    for (int64_t i = 0; i < length_; ++i)
      for (int64_t j = 0; j < c.v_head_dim; ++j)
        if (out.view()[i][0].as<float>()[j] != 0.0F) rows[static_cast<size_t>(i)].push_back(j);
    return rows;
  }
  // Both ranks see the same.
  [[nodiscard]] std::vector<Positions> over_ranks(const ParallelConfig& parallel, KvStorage storage) const {
    std::vector<std::vector<Positions>> of_ranks(static_cast<size_t>(parallel.tp_degree));
    test::run_ranks(static_cast<int>(parallel.tp_degree), [&](const std::shared_ptr<Communicator>& world) {
      const Attention attention = Attention::load(layer_.views(), layer_.config, Threads(1), Ranks(world, parallel));
      KvCache cache = attention.make_cache(storage, {.capacity = length_, .page_size = 16});
      of_ranks[static_cast<size_t>(world->rank())] = run(attention, &cache);
    });
    for (const auto& rows : of_ranks) EXPECT_EQ(rows, of_ranks.front());
    return of_ranks.front();
  }

 private:
  [[nodiscard]] std::vector<Positions> run(const Attention& attention, KvCache* cache) const {
    const Span span{.count = length_, .prefix = prefix_};
    Workspace workspace(1);
    AttentionInput input;
    input.hidden_states = hidden_;
    input.spans = {&span, 1};
    input.cache = cache;
    input.workspace = &workspace;
    return non_zeros(layer_.config, attention.forward(input).hidden_states);
  }

  int64_t length_;
  int64_t prefix_;
  test::TestLayer layer_;
  Tensor hidden_;
};

void expect_every_path_follows(const AttentionConfig& mask, int64_t length, int64_t prefix, const Rule& rule) {
  const std::vector<Positions> expected = by_rule(length, rule);
  const OneCall call(mask, length, prefix);
  EXPECT_EQ(call.without_cache(), expected);
  EXPECT_EQ(call.padded(), expected);
  EXPECT_EQ(call.attended(), expected);
  std::vector<KvStorage> storages = {KvStorage::contiguous, KvStorage::paged};
  if (mask.sliding_window > 0) storages.push_back(KvStorage::ring);
  if (mask.attention_chunk_size > 0) storages.push_back(KvStorage::chunk);
  for (const KvStorage storage : storages) {
    SCOPED_TRACE("storage " + std::to_string(static_cast<int>(storage)));
    EXPECT_EQ(call.through(storage), expected);
    using enum ContextSplit;
    for (const ContextSplit split : {contiguous, strided})
      EXPECT_EQ(call.over_ranks({.tp_degree = 2, .cp_degree = 2, .context_split = split}, storage), expected);
    EXPECT_EQ(call.over_ranks({.tp_degree = 3, .cp_degree = 3, .context_split = strided}, storage), expected);
    EXPECT_EQ(call.over_ranks({.tp_degree = 2}, storage), expected);
    EXPECT_EQ(call.over_ranks({.tp_degree = 2, .flash_decoding_enabled = true, .prefill_tokens = 100}, storage),
              expected);
  }
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

// [MASK-27]
TEST(Mask, Prefix_SeesItselfAndLaterTokensAreCausal) {
  EXPECT_EQ(members(Mask{}.visible(1, 6, 4)), (Positions{0, 1, 2, 3}));
  EXPECT_EQ(members(Mask{}.visible(4, 6, 4)), (Positions{0, 1, 2, 3, 4}));
  constexpr int64_t kLength = 9;
  for (const int64_t prefix : {int64_t{1}, int64_t{2}, int64_t{5}, kLength - 1, kLength}) {
    SCOPED_TRACE(prefix);
    expect_every_path_follows(revealing(kLength), kLength, prefix, with_prefix(prefix, 0));
  }
}

// [MASK-27]: as Gemma 3's images: a window cuts what lies behind a token, also inside of the prefix.
TEST(Mask, Prefix_UnderAWindowLooksBackNoFurther) {
  constexpr int64_t kLength = 9;
  for (const int64_t window : {1, 2, 3, 8, 9, 10})
    for (const int64_t prefix : {1, 4, 9}) {
      SCOPED_TRACE(std::to_string(window) + " " + std::to_string(prefix));
      AttentionConfig config = revealing(kLength);
      config.sliding_window = window;
      expect_every_path_follows(config, kLength, prefix, with_prefix(prefix, window));
    }
  AttentionConfig chunks = revealing(kLength);
  chunks.attention_chunk_size = 3;
  expect_every_path_follows(chunks, kLength, 5,
                            [](int64_t i, int64_t j) { return with_prefix(5, 0)(i, j) && i / 3 == j / 3; });
}

// [MASK-27]: pieces of a prefill, and tokens that come one by one after it.
TEST(Mask, Prefix_IsNotCutByPieces) {
  constexpr int64_t kLength = 9;
  for (const int64_t piece : {1, 2, 3, 7, 100})
    for (const int64_t prefix : {2, 5}) {
      SCOPED_TRACE(std::to_string(piece) + " " + std::to_string(prefix));
      AttentionConfig config = revealing(kLength);
      config.inference.windowed_context_encoding_size = piece;
      expect_every_path_follows(config, kLength, prefix, with_prefix(prefix, 0));
    }
}

// An image in the middle of a text sees all before it, and itself.
TEST(Mask, Prefix_MayBeginAnySpan) {
  constexpr int64_t kLength = 10;
  const auto layer = test::transparent_layer(revealing(kLength));
  const Attention attention = layer.load();
  KvCache cache = KvCache::paged({.capacity = kLength, .page_size = 16}, layer.config);
  std::vector<Positions> rows;
  for (const Span& span : {Span{.count = 3, .prefix = 2}, Span{.first_position = 3, .count = 6, .prefix = 4},
                           Span{.first_position = 9, .count = 1}}) {
    const Tensor hidden = one_hot_rows(layer.config, span.first_position, span.count);
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = {&span, 1};
    input.cache = &cache;
    for (const auto& row : non_zeros(layer.config, attention.forward(input).hidden_states)) rows.push_back(row);
  }
  EXPECT_EQ(rows, by_rule(kLength, [](int64_t i, int64_t j) {
              return j <= i || (i < 2 && j < 2) || (i >= 3 && i < 7 && j < 7);
            }));
}

TEST(Mask, Prefix_IsRefusedWhereItMakesNoSense) {
  AttentionConfig config = revealing(4);
  const auto refusal = [&](const Span& span, bool with_tree) {
    const auto layer = test::transparent_layer(config);
    const Tensor hidden = one_hot_rows(layer.config, 0, 4);
    Tensor tree(DType::boolean, {4, 4});
    for (int64_t i = 0; i < 4; ++i) *tree.view()[i][i].as<bool>() = true;
    const ConstTensorView view = tree;
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = {&span, 1};
    if (with_tree) input.active_masks = {&view, 1};
    return test::error_of([&] { (void)layer.load().forward(input); });
  };
  EXPECT_EQ(refusal({.count = 4, .prefix = 4}, false), "");
  EXPECT_NE(refusal({.count = 4, .prefix = 5}, false).find("prefix of 5 tokens, expected 0 to its count 4"),
            std::string::npos);
  EXPECT_NE(refusal({.count = 4, .prefix = -1}, false).find("prefix of -1"), std::string::npos);
  EXPECT_NE(refusal({.count = 4, .prefix = 2}, true).find("a prefix and an active mask"), std::string::npos);
  config.is_causal = false;
  EXPECT_NE(refusal({.count = 4, .prefix = 2}, false).find("not causal"), std::string::npos);
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

// [MASK-27]: the longest prefix that a ring has room for, and one that it refuses before anything changes.
TEST(Mask, Prefix_OfMoreThanAPieceMayNotFitARing) {
  AttentionConfig config = revealing(4);
  config.sliding_window = 20;
  config.inference.seq_len = 2048;
  const auto layer = test::transparent_layer(config);
  const Tensor hidden(DType::f32, {1500, layer.config.hidden_size});
  KvCache ring = KvCache::ring({.capacity = 2048, .page_size = 16}, layer.config);
  AttentionInput input;
  input.hidden_states = hidden;
  input.cache = &ring;
  Span span{.count = 1500, .prefix = 600};
  input.spans = {&span, 1};
  EXPECT_NE(test::error_of([&] { (void)layer.load().forward(input); }).find("more free pages"), std::string::npos);
  EXPECT_EQ(ring.length(0), 0);
  span.prefix = KvCache::kTokensAtOnce;
  EXPECT_EQ(test::error_of([&] { (void)layer.load().forward(input); }), "");
  EXPECT_EQ(ring.length(0), 1500);
}

TEST(Mask, DescribesItself) {
  EXPECT_EQ(Mask{}.description(), "causal");
  EXPECT_EQ((Mask{.is_causal = false, .sliding_window = 7}).description(), "bidirectional, window 7");
  EXPECT_EQ((Mask{.sliding_window = 7, .attention_chunk_size = 9}).limits(), "window 7, chunk 9");
}

}  // namespace
}  // namespace regard
