// Batches with padding: the same numbers as packed spans, and nothing from or for the padding.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "regard/attention.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/test_layer.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

AttentionConfig layer_config() {
  AttentionConfig config{.hidden_size = 12, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6};
  config.rotary_emb = RotaryConfig{};
  config.sliding_window = 4;
  config.learned_sinks_size = 1;
  config.rms_norm_eps = 1e-5;
  config.inference.seq_len = 16;
  return config;
}

constexpr int64_t kBatch = 3;
constexpr int64_t kSeq = 7;

class Padded : public ::testing::Test {
 protected:
  Padded() { std::ranges::fill(junk_.elements<float>(), NAN); }

  // Sequence `b` alone, packed, from position 0.
  AttentionOutput alone(int64_t b, int64_t count) {
    const Tensor rows = convert(real_.view()[b].slice(0, 0, count), DType::f32);
    AttentionInput input;
    input.hidden_states = rows;
    input.present_key_value = true;
    input.lse = true;
    return attention_.forward(input);
  }

  // A batch of the first lengths[b] tokens of each sequence; padding holds NaN, which would show anywhere.
  Tensor batch_of(const std::vector<int64_t>& lengths, bool left) {
    Tensor batch = convert(junk_, DType::f32);
    for (int64_t b = 0; b < kBatch; ++b) {
      const int64_t count = lengths[static_cast<size_t>(b)];
      const auto from = real_.view()[b].slice(0, 0, count).elements<float>();
      std::ranges::copy(from, batch.view()[b].slice(0, left ? kSeq - count : 0, count).as<float>());
    }
    return batch;
  }

  template <class T>
  Tensor mask_of(const std::vector<int64_t>& lengths, bool left) {
    Tensor mask(kDTypeOf<T>, {kBatch, kSeq});
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t i = 0; i < kSeq; ++i) {
        const int64_t count = lengths[static_cast<size_t>(b)];
        mask.view()[b].as<T>()[i] = static_cast<T>(left ? i >= kSeq - count : i < count);
      }
    return mask;
  }

  // Row b holds what the sequence alone gives, and zeros where there is padding.
  void expect_rows(const AttentionOutput& output, const std::vector<int64_t>& lengths, bool left) {
    ASSERT_EQ(output.hidden_states.shape(), (Shape{kBatch, kSeq, 12}));
    ASSERT_EQ(output.present_key_value.key.shape(), (Shape{kBatch, 2, kSeq, 6}));  // [OUT-10]
    ASSERT_EQ(output.present_key_value.value.shape(), (Shape{kBatch, 2, kSeq, 6}));
    for (int64_t b = 0; b < kBatch; ++b) {
      SCOPED_TRACE(b);
      const int64_t count = lengths[static_cast<size_t>(b)];
      const int64_t first = left ? kSeq - count : 0;
      Tensor hidden(DType::f32, {kSeq, 12});
      Tensor keys(DType::f32, {2, kSeq, 6});
      Tensor lse(DType::f32, {kSeq, 4});
      std::ranges::fill(lse.elements<float>(), -std::numeric_limits<float>::infinity());
      if (count > 0) {
        const auto expected = alone(b, count);
        std::ranges::copy(expected.hidden_states.elements<float>(), hidden.view()[first].as<float>());
        std::ranges::copy(expected.lse.elements<float>(), lse.view()[first].as<float>());
        for (int64_t i = 0; i < count; ++i)
          for (int64_t head = 0; head < 2; ++head)
            std::ranges::copy(expected.present_key_value.key.view()[i][head].elements<float>(),
                              keys.view()[head][first + i].as<float>());
      }
      EXPECT_EQ(test::bytes_of(output.hidden_states.view()[b]), test::bytes_of(hidden));
      EXPECT_EQ(test::bytes_of(output.present_key_value.key.view()[b]), test::bytes_of(keys));
      EXPECT_EQ(test::bytes_of(output.lse.view()[b]), test::bytes_of(lse));
    }
  }

  AttentionOutput run(const Tensor& batch, const Tensor& mask, KvCache* cache = nullptr) {
    PaddedAttentionInput input;
    input.hidden_states = batch;
    if (!mask.empty()) input.attention_mask = mask;
    input.present_key_value = true;
    input.lse = true;
    input.cache = cache;
    return attention_.forward(input);
  }

  static KvCache cache_of(int64_t slots) {
    return KvCache::contiguous({.slots = slots, .capacity = 16, .dtype = DType::f32}, layer_config());
  }

  Attention attention_ = test::random_layer(layer_config(), 91).load(2);
  Tensor real_ = test::Numbers(92).tensor({kBatch, kSeq, 12});
  Tensor junk_ = Tensor(DType::f32, {kBatch, kSeq, 12});
};

TEST_F(Padded, WithoutAMaskEveryTokenIsReal) { expect_rows(run(real_, Tensor()), {kSeq, kSeq, kSeq}, false); }

// [MASK-1], [CFG-46]
TEST_F(Padded, RightPaddingIsNeitherComputedNorSeen) {
  const std::vector<int64_t> lengths = {7, 3, 1};
  expect_rows(run(batch_of(lengths, false), mask_of<int64_t>(lengths, false)), lengths, false);
}

// [MASK-2], [KV-22], [GAP-63]: positions count from the first real token, so that the window is the same on both sides.
TEST_F(Padded, LeftPaddingIsNeitherComputedNorSeen) {
  const std::vector<int64_t> lengths = {7, 3, 1};
  expect_rows(run(batch_of(lengths, true), mask_of<int64_t>(lengths, true)), lengths, true);
}

// [GAP-29]
TEST_F(Padded, ARowOfPaddingOnlyIsZeros) {
  for (const bool left : {false, true}) {
    const std::vector<int64_t> lengths = {2, 0, 7};
    expect_rows(run(batch_of(lengths, left), mask_of<int64_t>(lengths, left)), lengths, left);
    const std::vector<int64_t> none = {0, 0, 0};
    expect_rows(run(batch_of(none, left), mask_of<int64_t>(none, left)), none, left);
  }
}

TEST_F(Padded, MasksMayBeOfAnyIntegerType) {
  const std::vector<int64_t> lengths = {4, 7, 2};
  const Tensor batch = batch_of(lengths, false);
  expect_rows(run(batch, mask_of<bool>(lengths, false)), lengths, false);
  expect_rows(run(batch, mask_of<uint8_t>(lengths, false)), lengths, false);
  expect_rows(run(batch, mask_of<int32_t>(lengths, false)), lengths, false);
  EXPECT_THAT(error_of([&] { run(batch, mask_of<float>(lengths, false)); }), HasSubstr("dtype f32"));
}

TEST_F(Padded, HolesInAMaskAreRefused) {
  const Tensor mask = mask_of<int64_t>({7, 7, 7}, false);
  mask.view()[1].as<int64_t>()[3] = 0;
  EXPECT_THAT(error_of([&] { run(real_, mask); }), HasSubstr("attention_mask of row 1 has padding between tokens"));
}

TEST_F(Padded, PaddingOnBothSidesIsARunOfTokensToo) {
  const Tensor mask = mask_of<int64_t>({7, 7, 5}, false);
  mask.view()[2].as<int64_t>()[0] = 0;
  const auto output = run(real_, mask);
  const Tensor middle = convert(real_.view()[2].slice(0, 1, 4), DType::f32);
  AttentionInput input;
  input.hidden_states = middle;
  EXPECT_EQ(test::bytes_of(output.hidden_states.view()[2].slice(0, 1, 4)),
            test::bytes_of(attention_.forward(input).hidden_states));
}

// [OUT-30], [GAP-63], [KV-7], [KV-22], [KV-32]: prefill with padding on either side, then steps without positions: each
// row goes on by itself, in the slot of its number.
TEST_F(Padded, DecodeGoesOnWhereEachRowEnded) {
  for (const bool left : {false, true}) {
    const std::vector<int64_t> lengths = {5, 2, 6};
    KvCache cache = cache_of(kBatch);
    (void)run(batch_of(lengths, left), mask_of<int64_t>(lengths, left), &cache);
    for (int64_t b = 0; b < kBatch; ++b) ASSERT_EQ(cache.length(b), lengths[static_cast<size_t>(b)]);
    Tensor next(DType::f32, {kBatch, 1, 12});
    for (int64_t b = 0; b < kBatch; ++b)
      std::ranges::copy(real_.view()[b][lengths[static_cast<size_t>(b)]].elements<float>(), next.view()[b].as<float>());
    const auto output = run(next, Tensor(), &cache);
    for (int64_t b = 0; b < kBatch; ++b) {
      const int64_t count = lengths[static_cast<size_t>(b)] + 1;
      EXPECT_EQ(test::bytes_of(output.hidden_states.view()[b][0]),
                test::bytes_of(alone(b, count).hidden_states.view()[count - 1]));
    }
  }
}

// [GAP-43], [GAP-42], [KV-35]: rows of -1 write nothing and the others keep every byte.
TEST_F(Padded, RowsOfSlotMinusOneAreSkipped) {
  KvCache cache = cache_of(2);
  (void)run(convert(real_.view().slice(0, 0, 2), DType::f32), Tensor(), &cache);
  const auto before = test::bytes_of(cache.read(0, 0, 7).first);
  const std::vector<int64_t> slots = {-1, 1, -1};
  PaddedAttentionInput input;
  const Tensor batch = convert(real_, DType::f32);
  std::ranges::fill(batch.view()[0].elements<float>(), NAN);
  input.hidden_states = batch;
  input.seq_ids = slots;
  input.cache = &cache;
  const auto output = attention_.forward(input);
  EXPECT_EQ(cache.length(0), 7);
  EXPECT_EQ(cache.length(1), 14);
  EXPECT_EQ(test::bytes_of(cache.read(0, 0, 7).first), before);
  for (const int64_t b : {0, 2})
    for (const float value : output.hidden_states.view()[b].elements<float>()) EXPECT_EQ(value, 0.0F);
  EXPECT_NE(output.hidden_states.view()[1].elements<float>()[0], 0.0F);
}

// [KV-7], [KV-30], [KV-35]: rows go to the slots that they name, in any order.
TEST_F(Padded, SeqIdsNameTheSlotOfEachRow) {
  KvCache cache = cache_of(5);
  const std::vector<int64_t> slots = {4, 0, 3};
  PaddedAttentionInput input;
  input.hidden_states = real_;
  input.seq_ids = slots;
  input.cache = &cache;
  (void)attention_.forward(input);
  for (int64_t b = 0; b < kBatch; ++b)
    EXPECT_EQ(test::bytes_of(cache.read(slots[static_cast<size_t>(b)], 0, 7).first),
              test::bytes_of(alone(b, 7).present_key_value.key));
  EXPECT_EQ(cache.length(1), 0);
  const std::vector<int64_t> twice = {4, 0, 4};
  input.seq_ids = twice;
  EXPECT_THAT(error_of([&] { (void)attention_.forward(input); }), HasSubstr("slot 4 comes twice"));
  const std::vector<int64_t> outside = {0, 1, 5};
  input.seq_ids = outside;
  EXPECT_THAT(error_of([&] { (void)attention_.forward(input); }), HasSubstr("slot is 5"));
  const std::vector<int64_t> few = {0, 1};
  input.seq_ids = few;
  EXPECT_THAT(error_of([&] { (void)attention_.forward(input); }), HasSubstr("seq_ids has 2 entries, expected 3"));
}

// [POS-19], [POS-21]: the padding's ids, 1 in the reference, mean nothing.
TEST_F(Padded, PositionIdsSayWhereARowStarts) {
  KvCache cache = cache_of(kBatch);
  (void)run(real_, Tensor(), &cache);
  const std::vector<int64_t> lengths = {2, 3, 1};
  const Tensor batch = batch_of(lengths, false);
  const Tensor mask = mask_of<int32_t>(lengths, false);
  const Tensor positions =
      test::tensor_of<int32_t>({kBatch, kSeq}, {4, 5, 1, 1, 1, 1, 1, 0, 1, 2, 1, 1, 1, 1, 7, 1, 1, 1, 1, 1, 1});
  PaddedAttentionInput input;
  input.hidden_states = batch;
  input.attention_mask = mask;
  input.position_ids = positions;
  input.cache = &cache;
  const auto output = attention_.forward(input);
  EXPECT_EQ(cache.length(0), 6);
  EXPECT_EQ(cache.length(1), 3);
  EXPECT_EQ(cache.length(2), 8);
  EXPECT_EQ(test::bytes_of(output.hidden_states.view()[1].slice(0, 0, 3)), test::bytes_of(alone(1, 3).hidden_states));
  positions.elements<int32_t>()[1] = 6;
  EXPECT_THAT(error_of([&] { (void)attention_.forward(input); }),
              HasSubstr("position_ids of row 0 has 6 at index 1, expected 5"));
}

// Counting on from such a position would overflow.
TEST_F(Padded, PositionsOutsideTheIntegersOfASequenceAreRefused) {
  PaddedAttentionInput input;
  input.hidden_states = real_;
  for (const int64_t first : {std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::max() - kSeq + 1,
                              int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    const Tensor positions = test::tensor_of<int64_t>({kBatch, kSeq}, std::vector<int64_t>(kBatch * kSeq, first));
    input.position_ids = positions;
    EXPECT_THAT(error_of([&] { (void)attention_.forward(input); }),
                HasSubstr(fmt::format("position_ids of row 0 starts at {}", first)));
  }
}

// [POS-18]
TEST_F(Padded, RotaryPositionIdsAreTakenForTheRealTokens) {
  const std::vector<int64_t> lengths = {2, 0, 1};
  const Tensor batch = batch_of(lengths, true);
  const Tensor mask = mask_of<int64_t>(lengths, true);
  std::vector<int64_t> ids(kBatch * kSeq, 99);
  ids[5] = 10;
  ids[6] = 20;
  ids[20] = 30;
  PaddedAttentionInput input;
  input.hidden_states = batch;
  input.attention_mask = mask;
  input.rotary_position_ids = ids;
  input.angles = true;
  const auto output = attention_.forward(input);
  const auto expected = RotaryEmbedding(*attention_.config().rotary_emb).angles(std::vector<int64_t>{10, 20, 30});
  EXPECT_EQ(test::bytes_of(output.cos_cache.values), test::bytes_of(expected.cos.values));
  ids.pop_back();
  input.rotary_position_ids = ids;
  EXPECT_THAT(error_of([&] { (void)attention_.forward(input); }),
              HasSubstr("rotary_position_ids has 20 entries, expected 21"));
}

// [OUT-6]
TEST_F(Padded, ResidualsArePaddedLikeTheHiddenStates) {
  const std::vector<int64_t> lengths = {3, 7, 1};
  const Tensor batch = batch_of(lengths, true);
  const Tensor mask = mask_of<int64_t>(lengths, true);
  const Tensor gain = test::Numbers(93).tensor({12});
  PaddedAttentionInput input;
  input.hidden_states = batch;
  input.attention_mask = mask;
  input.residual = batch;
  input.rmsnorm = gain;
  const auto output = attention_.forward(input);
  ASSERT_EQ(output.residual.shape(), (Shape{kBatch, kSeq, 12}));
  for (int64_t i = 0; i < kSeq; ++i)
    for (size_t d = 0; d < 12; ++d)
      EXPECT_EQ(output.residual.view()[0][i].elements<float>()[d],
                i < 4 ? 0.0F : 2 * batch.view()[0][i].elements<float>()[d]);
  const Tensor flat = convert(batch.view().reshape({kBatch * kSeq, 12}), DType::f32);
  input.residual = flat;
  EXPECT_THAT(error_of([&] { (void)attention_.forward(input); }), HasSubstr("residual has shape [21, 12]"));
}

// [CFG-43]: a limit that nobody set is none.
TEST_F(Padded, RowsOfAnyLengthAreComputedWhereNoLimitIsSet) {
  AttentionConfig config = layer_config();
  config.inference = {};
  const auto layer = test::random_layer(config, 91);
  const Tensor batch = test::Numbers(94).tensor({1, 200, 12});
  PaddedAttentionInput padded;
  padded.hidden_states = batch;
  AttentionInput packed;
  packed.hidden_states = batch.view()[0];
  const Attention attention = layer.load();
  EXPECT_EQ(test::bytes_of(attention.forward(padded).hidden_states.view()[0]),
            test::bytes_of(attention.forward(packed).hidden_states));
}

// [CFG-75], [CFG-43]
TEST_F(Padded, PromptsLongerThanTheLimitAreRefusedOrLoseTheirTail) {
  AttentionConfig config = layer_config();
  config.inference.max_context_length = 5;
  const auto layer = test::random_layer(config, 91);
  for (const bool left : {false, true}) {
    const std::vector<int64_t> lengths = {6, 3, 5};
    const Tensor batch = batch_of(lengths, left);
    const Tensor mask = mask_of<int64_t>(lengths, left);
    PaddedAttentionInput input;
    input.hidden_states = batch;
    input.attention_mask = mask;
    EXPECT_THAT(error_of([&] { (void)layer.load().forward(input); }),
                HasSubstr("row 0 has 6 tokens, expected at most max_context_length (5)"));
    auto truncating = layer;
    truncating.config.inference.allow_input_truncation = true;
    const auto output = truncating.load().forward(input);
    const int64_t first = left ? 1 : 0;
    EXPECT_EQ(test::bytes_of(output.hidden_states.view()[0].slice(0, first, 5)),
              test::bytes_of(alone(0, 5).hidden_states));
    for (const float value : output.hidden_states.view()[0][first + 5].elements<float>()) EXPECT_EQ(value, 0.0F);
  }
}

TEST_F(Padded, RefusesShapesThatDoNotFit) {
  const auto refusal = [&](const Tensor& hidden, const Tensor& mask, const Tensor& positions) {
    PaddedAttentionInput input;
    input.hidden_states = hidden;
    if (!mask.empty()) input.attention_mask = mask;
    if (!positions.empty()) input.position_ids = positions;
    return error_of([&] { (void)attention_.forward(input); });
  };
  EXPECT_THAT(refusal(Tensor(DType::f32, {7, 12}), {}, {}), HasSubstr("hidden_states has shape [7, 12]"));
  EXPECT_THAT(refusal(Tensor(DType::f32, {1, 7, 11}), {}, {}), HasSubstr("hidden_states has shape [1, 7, 11]"));
  EXPECT_THAT(refusal(real_, Tensor(DType::i64, {3, 6}), {}), HasSubstr("attention_mask has shape [3, 6]"));
  EXPECT_THAT(refusal(real_, {}, Tensor(DType::i64, {2, 7})), HasSubstr("position_ids has shape [2, 7]"));
  EXPECT_THAT(refusal(real_, {}, Tensor(DType::f32, {3, 7})), HasSubstr("dtype f32"));
}

}  // namespace
}  // namespace regard
