// Calls on packed tokens: spans, caches, pieces, and what is refused before anything changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "regard/attention.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/test_layer.h"

namespace regard {
namespace {

using test::bytes_of;
using test::error_of;
using ::testing::HasSubstr;

AttentionConfig layer_config() {
  AttentionConfig config{.hidden_size = 12, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6};
  config.rotary_emb = RotaryConfig{};
  config.rms_norm_eps = 1e-5;
  return config;
}

class Call : public ::testing::Test {
 protected:
  AttentionOutput run(const Attention& attention, ConstTensorView hidden, const std::vector<Span>& spans,
                      KvCache* cache) const {
    const Tensor rows = convert(hidden, DType::f32);
    AttentionInput input;
    input.hidden_states = rows;
    input.spans = spans;
    input.cache = cache;
    input.present_key_value = true;
    input.angles = true;
    input.lse = true;
    return attention.forward(input);
  }
  AttentionOutput run(ConstTensorView hidden, const std::vector<Span>& spans, KvCache* cache = nullptr) const {
    return run(attention_, hidden, spans, cache);
  }

  [[nodiscard]] ConstTensorView tokens(int64_t first, int64_t count) const {
    return hidden_.view().slice(0, first, count);
  }
  static KvCache cache_of(int64_t slots, int64_t capacity) {
    return KvCache::contiguous({.slots = slots, .capacity = capacity, .dtype = DType::bf16}, layer_config());
  }

  Attention attention_ = test::random_layer(layer_config(), 101).load(2);
  Tensor hidden_ = test::Numbers(102).tensor({700, 12});
};

TEST_F(Call, WithoutSpansTheTokensAreOneSequence) {
  EXPECT_EQ(bytes_of(run(tokens(0, 9), {}).hidden_states),
            bytes_of(run(tokens(0, 9), {{.slot = 0, .count = 9}}).hidden_states));
}

// As the padded form does: a second call without spans is the next part of the sequence, not a new one.
TEST_F(Call, WithoutSpansACallContinuesSlot0OfItsCache) {
  KvCache spanned = cache_of(2, 40);
  KvCache implied = cache_of(2, 40);
  (void)run(tokens(0, 7), {{.slot = 0, .count = 7}}, &spanned);
  const auto expected = run(tokens(7, 1), {{.slot = 0, .first_position = 7, .count = 1}}, &spanned);
  (void)run(tokens(0, 7), {}, &implied);
  const auto next = run(tokens(7, 1), {}, &implied);
  EXPECT_EQ(implied.length(0), 8);
  EXPECT_EQ(bytes_of(next.hidden_states), bytes_of(expected.hidden_states));
  EXPECT_EQ(bytes_of(implied.read(0, 0, 8).first), bytes_of(spanned.read(0, 0, 8).first));
}

// Prefill, a chunk of a longer prompt and a decode step in one call have the bits of calls of their own.
TEST_F(Call, SpansOfAnyKindMixInOneCall) {
  KvCache apart = cache_of(3, 400);
  KvCache mixed = cache_of(3, 400);
  for (KvCache* cache : {&apart, &mixed}) {
    (void)run(tokens(0, 300), {{.slot = 1, .count = 300}}, cache);
    (void)run(tokens(300, 30), {{.slot = 2, .count = 30}}, cache);
  }
  const std::vector<Span> spans = {{.slot = 1, .first_position = 300, .count = 1},
                                   {.slot = 0, .first_position = 0, .count = 50},
                                   {.slot = 2, .first_position = 30, .count = 20}};
  const auto together = run(tokens(330, 71), spans, &mixed);
  int64_t first = 0;
  for (const Span& span : spans) {
    const auto own = run(tokens(330 + first, span.count), {span}, &apart);
    EXPECT_EQ(bytes_of(together.hidden_states.view().slice(0, first, span.count)), bytes_of(own.hidden_states));
    EXPECT_EQ(bytes_of(together.lse.view().slice(0, first, span.count)), bytes_of(own.lse));
    EXPECT_EQ(bytes_of(mixed.read(span.slot, 0, mixed.length(span.slot)).first),
              bytes_of(apart.read(span.slot, 0, apart.length(span.slot)).first));
    first += span.count;
  }
}

// More tokens than go through a layer at once, and pieces of any size [CFG-68].
TEST_F(Call, ThePiecesOfAPromptAreInvisible) {
  const auto whole = run(tokens(0, 700), {});
  AttentionConfig config = layer_config();
  for (const int64_t piece : {1, 100, 256, 699, 5000}) {
    config.inference.windowed_context_encoding_size = piece;
    const auto pieces = run(test::random_layer(config, 101).load(2), tokens(0, 700), {}, nullptr);
    EXPECT_EQ(bytes_of(pieces.hidden_states), bytes_of(whole.hidden_states)) << piece;
    EXPECT_EQ(bytes_of(pieces.lse), bytes_of(whole.lse)) << piece;
    EXPECT_EQ(bytes_of(pieces.present_key_value.value), bytes_of(whole.present_key_value.value)) << piece;
  }
}

// Without a cache every span is a sequence of its own, even where slots are equal or arbitrary.
TEST_F(Call, WithoutACacheSpansSeeOnlyThemselves) {
  const auto both = run(tokens(0, 20), {{.slot = 7, .count = 8}, {.slot = 7, .count = 12}});
  EXPECT_EQ(bytes_of(both.hidden_states.view().slice(0, 0, 8)), bytes_of(run(tokens(0, 8), {}).hidden_states));
  EXPECT_EQ(bytes_of(both.hidden_states.view().slice(0, 8, 12)), bytes_of(run(tokens(8, 12), {}).hidden_states));
}

// Their positions still count: the rotation, and the place of a chunk.
TEST_F(Call, WithoutACacheSpansStartWhereTheySay) {
  AttentionConfig config = layer_config();
  config.attention_chunk_size = 4;
  const Attention chunked = test::random_layer(config, 101).load();
  const auto output = run(chunked, tokens(0, 6), {{.slot = 0, .first_position = 102, .count = 6}}, nullptr);
  const auto angles =
      RotaryEmbedding(*config.validated().rotary_emb).angles(std::vector<int64_t>{102, 103, 104, 105, 106, 107});
  EXPECT_EQ(bytes_of(output.cos_cache.values), bytes_of(angles.cos.values));
  // Positions 104 .. 107 are a chunk, which the first two tokens are not in.
  const auto second = run(chunked, tokens(2, 4), {{.slot = 0, .first_position = 104, .count = 4}}, nullptr);
  for (size_t i = 0; i < 48; ++i)
    EXPECT_NEAR(output.hidden_states.elements<float>()[24 + i], second.hidden_states.elements<float>()[i], 1e-5);
}

TEST_F(Call, TokensOfSlotMinusOneGiveZerosAndStoreNothing) {
  KvCache cache = cache_of(1, 20);
  const Tensor hidden = convert(tokens(0, 9), DType::f32);
  hidden.elements<float>()[3 * 12] = NAN;
  const auto output = run(hidden, {{.slot = -1, .count = 4}, {.slot = 0, .count = 5}}, &cache);
  for (const float value : output.hidden_states.view().slice(0, 0, 4).elements<float>()) EXPECT_EQ(value, 0.0F);
  EXPECT_EQ(cache.length(0), 5);
  KvCache other = cache_of(1, 20);
  EXPECT_EQ(bytes_of(output.hidden_states.view().slice(0, 4, 5)),
            bytes_of(run(tokens(4, 5), {{.slot = 0, .count = 5}}, &other).hidden_states));
}

TEST_F(Call, NoTokensIsNoWork) {
  KvCache cache = cache_of(1, 20);
  const auto output = run(tokens(0, 0), {}, &cache);
  EXPECT_EQ(output.hidden_states.shape(), (Shape{0, 12}));
  EXPECT_EQ(cache.length(0), 0);
}

// [GAP-23]: a first decode step at position 0 is a prefill of one token, whatever it is called.
TEST_F(Call, TheFirstTokenMayBeAStepOfItsOwn) {
  KvCache cache = cache_of(1, 20);
  KvCache other = cache_of(1, 20);
  const auto whole = run(tokens(0, 2), {{.slot = 0, .count = 2}}, &other);
  (void)run(tokens(0, 1), {{.slot = 0, .first_position = 0, .count = 1}}, &cache);
  const auto second = run(tokens(1, 1), {{.slot = 0, .first_position = 1, .count = 1}}, &cache);
  EXPECT_EQ(bytes_of(second.hidden_states.view()[0]), bytes_of(whole.hidden_states.view()[1]));
}

// [OUT-31]: a draft of which one token was refused, and the tokens after it.
TEST_F(Call, ADraftMayBeTakenBack) {
  KvCache cache = cache_of(1, 40);
  KvCache straight = cache_of(1, 40);
  (void)run(tokens(0, 10), {{.slot = 0, .count = 10}}, &cache);
  (void)run(tokens(50, 4), {{.slot = 0, .first_position = 10, .count = 4}}, &cache);
  const auto redone = run(tokens(10, 3), {{.slot = 0, .first_position = 10, .count = 3}}, &cache);
  const auto expected = run(tokens(0, 13), {{.slot = 0, .count = 13}}, &straight);
  EXPECT_EQ(bytes_of(redone.hidden_states), bytes_of(expected.hidden_states.view().slice(0, 10, 3)));
}

TEST_F(Call, EveryNumberOfThreadsGivesTheSameBits) {
  const auto expected = run(tokens(0, 300), {});
  for (const int threads : {1, 3, 5, 16}) {
    Workspace workspace(threads);
    AttentionInput input;
    const Tensor rows = convert(tokens(0, 300), DType::f32);
    input.hidden_states = rows;
    input.workspace = &workspace;
    EXPECT_EQ(bytes_of(attention_.forward(input).hidden_states), bytes_of(expected.hidden_states)) << threads;
  }
}

struct Refused {
  const char* message;
  std::function<void(AttentionInput&)> change;
};

TEST_F(Call, RefusesWhatDoesNotFitBeforeTheCacheChanges) {
  KvCache cache = cache_of(2, 20);
  (void)run(tokens(0, 5), {{.slot = 0, .count = 5}}, &cache);
  const auto before = bytes_of(cache.read(0, 0, 5).first);
  const Tensor hidden = convert(tokens(5, 4), DType::f32);
  const Tensor narrow(DType::f32, {4, 11});
  const Tensor flat(DType::f32, {48});
  const Tensor doubles(DType::f64, {4, 12});
  const Tensor row(DType::f32, {12});
  const Tensor short_row(DType::f32, {11});
  const Tensor half_row(DType::f16, {12});
  const Tensor half_residual(DType::bf16, {4, 12});
  const std::vector<int64_t> three_ids = {0, 1, 2};
  const std::vector<Span> spans = {{.slot = 0, .first_position = 5, .count = 3}, {.slot = 1, .count = 1}};
  const std::vector<Span> few = {{.slot = 0, .first_position = 5, .count = 3}};
  const std::vector<Span> many = {{.slot = 0, .first_position = 5, .count = 5}};
  const std::vector<Span> none = {{.slot = 0, .first_position = 5, .count = 4}, {.slot = 1, .count = 0}};
  const std::vector<Span> negative = {{.slot = 0, .first_position = -5, .count = 4}};
  const std::vector<Span> hole = {{.slot = 1, .first_position = 0, .count = 2},
                                  {.slot = 0, .first_position = 6, .count = 2}};
  const std::vector<Span> full = {{.slot = 1, .first_position = 0, .count = 2},
                                  {.slot = 0, .first_position = 5, .count = std::numeric_limits<int64_t>::max()}};
  const std::vector<Span> twice = {{.slot = 0, .first_position = 5, .count = 2},
                                   {.slot = 0, .first_position = 5, .count = 2}};
  const std::vector<Span> outside = {{.slot = 2, .first_position = 0, .count = 4}};
  const std::vector<Refused> cases = {
      {"hidden_states has shape [4, 11], expected [tokens, 12]", [&](auto& i) { i.hidden_states = narrow; }},
      {"hidden_states has shape [48]", [&](auto& i) { i.hidden_states = flat; }},
      {"hidden_states has dtype f64", [&](auto& i) { i.hidden_states = doubles; }},
      {"spans hold 3 tokens, but hidden_states has 4", [&](auto& i) { i.spans = few; }},
      {"spans hold more tokens than hidden_states, which has 4", [&](auto& i) { i.spans = many; }},
      {"spans hold more tokens than hidden_states", [&](auto& i) { i.spans = none; }},
      {"first_position is -5", [&](auto& i) { i.spans = negative; }},
      {"first_position is 6, but slot 0 holds 5", [&](auto& i) { i.spans = hole; }},
      {"spans hold more tokens", [&](auto& i) { i.spans = full; }},
      {"slot 0 comes twice", [&](auto& i) { i.spans = twice; }},
      {"slot is 2", [&](auto& i) { i.spans = outside; }},
      {"rmsnorm has shape [11], expected [12]", [&](auto& i) { i.rmsnorm = short_row; }},
      {"f16", [&](auto& i) { i.rmsnorm = half_row; }},
      {"residual has shape [4, 11]", [&](auto& i) { i.residual = narrow; }},
      {"residual has shape [4, 12] and dtype bf16", [&](auto& i) { i.residual = half_residual; }},
      {"rotary_position_ids has 3 entries, expected 4", [&](auto& i) { i.rotary_position_ids = three_ids; }},
      {"output has shape [4, 11]", [&](auto& i) { i.output = narrow; }},
  };
  for (const Refused& refused : cases) {
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = spans;
    input.cache = &cache;
    refused.change(input);
    EXPECT_THAT(error_of([&] { (void)attention_.forward(input); }), HasSubstr(refused.message));
    ASSERT_EQ(cache.length(0), 5) << refused.message;
    ASSERT_EQ(cache.length(1), 0) << refused.message;
    ASSERT_EQ(bytes_of(cache.read(0, 0, 5).first), before) << refused.message;
  }
}

TEST_F(Call, RefusesPositionsThatCannotBeCounted) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_THAT(error_of([&] { run(tokens(0, 4), {{.slot = 0, .first_position = kMost - 3, .count = 4}}); }),
              HasSubstr("room for 4 positions"));
  EXPECT_EQ(error_of([&] { run(tokens(0, 4), {{.slot = 0, .first_position = kMost - 4, .count = 4}}); }), "");
}

TEST_F(Call, RefusesACacheOfAnotherLayer) {
  AttentionConfig other = layer_config();
  other.num_key_value_heads = 4;
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = 20, .dtype = DType::f32}, other);
  EXPECT_THAT(error_of([&] { run(tokens(0, 3), {{.slot = 0, .count = 3}}, &cache); }),
              HasSubstr("the cache has 4 KV heads of 6 and 6, but the layer has 2 of 6 and 6"));
}

// [CFG-7]: a fused input norm needs its eps.
TEST_F(Call, RefusesAnInputNormWithoutEps) {
  AttentionConfig config = layer_config();
  config.rms_norm_eps.reset();
  const Attention attention = test::random_layer(config, 101).load();
  const Tensor rows = convert(tokens(0, 3), DType::f32);
  const Tensor gain(DType::f32, {12});
  AttentionInput input;
  input.hidden_states = rows;
  input.rmsnorm = gain;
  EXPECT_THAT(error_of([&] { (void)attention.forward(input); }), HasSubstr("rms_norm_eps is not set"));
}

// A cache whose pages go back earlier than this layer's tokens let go of them.
TEST_F(Call, RefusesACacheOfANarrowerWindow) {
  AttentionConfig narrow = layer_config();
  narrow.sliding_window = 8;
  KvCache cache = KvCache::ring({.slots = 1, .capacity = 100, .page_size = 16}, narrow);
  (void)run(tokens(0, 8), {{.slot = 0, .count = 8}}, &cache);  // up to here both see all
  EXPECT_THAT(error_of([&] { (void)run(tokens(8, 4), {{.slot = 0, .first_position = 8, .count = 4}}, &cache); }),
              HasSubstr("the token at position 8 sees position 0, but the cache"));
  EXPECT_EQ(cache.length(0), 8);
}

Tensor mask_of(const std::vector<std::vector<bool>>& rows) {
  const auto count = static_cast<int64_t>(rows.size());
  Tensor mask(DType::boolean, {count, count});
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < count; ++j)
      *mask.view()[i][j].as<bool>() = rows[static_cast<size_t>(i)][static_cast<size_t>(j)];
  return mask;
}

// [MASK-12]
TEST_F(Call, RefusesActiveMasksThatAreNoTrees) {
  KvCache cache = cache_of(2, 50);
  const std::vector<Span> spans = {{.slot = 0, .count = 2}, {.slot = 1, .count = 1}};
  const auto refusal = [&](const std::vector<ConstTensorView>& masks) {
    const Tensor rows = convert(tokens(0, 3), DType::f32);
    AttentionInput input;
    input.hidden_states = rows;
    input.spans = spans;
    input.cache = &cache;
    input.active_masks = masks;
    return error_of([&] { (void)attention_.forward(input); });
  };
  const Tensor chain = mask_of({{true, false}, {true, true}});
  const Tensor single = mask_of({{true}});
  EXPECT_THAT(refusal({chain}), HasSubstr("active_masks has 1 masks, expected 2"));
  EXPECT_THAT(refusal({single, single}), HasSubstr("active_mask of slot 0 has shape [1, 1]"));
  EXPECT_THAT(refusal({mask_of({{true, true}, {true, true}}), single}),
              HasSubstr("token 0 see token 1, which comes later"));
  EXPECT_THAT(refusal({mask_of({{true, false}, {true, false}}), single}), HasSubstr("hides token 1 from itself"));
  EXPECT_THAT(refusal({Tensor(DType::f32, {2, 2}), single}), HasSubstr("dtype f32"));
  EXPECT_EQ(cache.length(0), 0);
  EXPECT_EQ(refusal({chain, ConstTensorView()}), "");
}

// The padded form hands each row its part of the mask: [batch, seq, seq], or [seq, seq] for all.
TEST_F(Call, ThePaddedFormTakesTreesToo) {
  const Tensor mask = mask_of({{true, false, false}, {true, true, false}, {true, false, true}});
  const auto run_padded = [&](ConstTensorView active_mask, const Tensor& padding) {
    KvCache cache = cache_of(2, 50);
    Tensor hidden(DType::f32, {2, 3, 12});
    std::ranges::copy(tokens(0, 6).elements<float>(), hidden.elements<float>().begin());
    PaddedAttentionInput input;
    input.hidden_states = hidden;
    input.attention_mask = padding;
    input.active_mask = active_mask;
    input.cache = &cache;
    return attention_.forward(input).hidden_states;
  };
  const Tensor all = test::tensor_of<bool>({2, 3}, {true, true, true, true, true, true});
  const Tensor shared = run_padded(mask, all);
  Tensor each(DType::boolean, {2, 3, 3});
  for (int64_t b = 0; b < 2; ++b) std::ranges::copy(mask.elements<bool>(), each.view()[b].elements<bool>().begin());
  EXPECT_EQ(bytes_of(run_padded(each, all)), bytes_of(shared));
  // Token 2 of a row is token 1 of its own branch.
  KvCache cache = cache_of(1, 50);
  (void)run(tokens(3, 1), {{.slot = 0, .count = 1}}, &cache);
  const Tensor alone = run(tokens(5, 1), {{.slot = 0, .first_position = 1, .count = 1}}, &cache).hidden_states;
  EXPECT_EQ(bytes_of(shared.view()[1].slice(0, 2, 1).reshape({1, 12})), bytes_of(alone));
  EXPECT_THAT(error_of([&] { (void)run_padded(mask_of({{true}}), all); }), HasSubstr("active_mask has shape [1, 1]"));
}

}  // namespace
}  // namespace regard
