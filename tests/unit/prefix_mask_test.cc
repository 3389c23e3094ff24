#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "regard/attention.h"
#include "regard/mask.h"
#include "support/error_of.h"
#include "support/test_layer.h"
#include "support/visible_keys.h"

// Prefixes whose tokens see each other.
namespace regard {
namespace {

using test::by_rule;
using test::expect_every_path_follows;
using test::members;
using test::non_zeros;
using test::one_hot_rows;
using test::Positions;
using test::revealing;
using test::Rule;

// The first `prefix` tokens see each other, as far as the window lets them look back; others are causal.
Rule with_prefix(int64_t prefix, int64_t window) {
  return
      [=](int64_t i, int64_t j) { return (j <= i || (i < prefix && j < prefix)) && (window == 0 || i - j < window); };
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

}  // namespace
}  // namespace regard
