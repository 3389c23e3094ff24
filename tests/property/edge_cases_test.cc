// Numbers and lengths at the edge: extreme scores, NaN behind the mask, windows as long as the text.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "support/attend_case.h"
#include "support/attend_oracle.h"
#include "support/property.h"
#include "support/session.h"

namespace regard::test {
namespace {

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

LayerCase causal_layer() {
  auto c = *layer_cases({.bidirectional = false, .longest_text = 300, .small = true});
  c.config.sliding_window = c.config.attention_chunk_size = 0;
  return c;
}

TEST(Edges, AWindowOrChunkAtLeastAsLongAsTheTextEqualsCausal) {  // [MASK-3], [MASK-4]
  check_property(60, [] {
    const LayerCase c = causal_layer();
    const auto tokens = *rc::gen::inRange<int64_t>(1, 300);
    const Layer causal(c);
    const Tensor hidden = causal.text(tokens);
    const auto expected = prefill_at_once(causal, hidden);
    for (const int64_t more : {0, 1, 1000}) {
      LayerCase windowed = c;
      windowed.config.sliding_window = tokens + more;
      RC_ASSERT(first_difference(prefill_at_once(Layer(windowed), hidden), expected) == "");
      LayerCase chunked = c;
      chunked.config.attention_chunk_size = tokens + more;
      RC_ASSERT(first_difference(prefill_at_once(Layer(chunked), hidden), expected) == "");
    }
  });
}

// Prefill of S tokens and then the token S: the row S of a prefill of S + 1 tokens [OUT-30], for S around the edges of
// windows and chunks [OUT-33] and of blocks of 256 keys.
TEST(Edges, DecodeOfTheNextTokenEqualsTheLastRowOfALongerPrefill) {
  check_property(60, [] {
    LayerCase c = causal_layer();
    const auto size = *rc::gen::inRange<int64_t>(2, 100);
    if (*rc::gen::arbitrary<bool>()) c.config.sliding_window = size;
    if (*rc::gen::arbitrary<bool>()) c.config.attention_chunk_size = size;
    draw_storage(c);
    const Layer layer(c);
    const Tensor hidden = layer.text(514);
    const auto expected = prefill_at_once(layer, hidden);
    for (const int64_t prompt : {size - 1, size, size + 1, 2 * size - 2, 2 * size - 1, 2 * size, int64_t{255},
                                 int64_t{256}, int64_t{257}, int64_t{511}, int64_t{512}, int64_t{513}}) {
      Sequence sequence{.hidden = hidden};
      Session session(layer, {.capacity = prompt + 1});
      session.advance(sequence, prompt);
      session.advance(sequence, 1);
      RC_ASSERT(first_difference(sequence.outputs, std::span(expected).first(sequence.outputs.size())) == "");
    }
  });
}

// Scores from -1e4 to 1e4, and some of no size at all, in one row: finite, and right.
TEST(Edges, HugeAndTinyScoresStayRight) {
  check_property(200, [] {
    auto c = *attend_cases();
    c.cache_dtype = DType::f32;
    c.config.logit_soft_cap = 0;
    c.spread = 1.0;
    AttendNumbers numbers = make_numbers(c);
    Random random(c.seed + 1);
    const double score = std::sqrt(static_cast<double>(c.config.head_dim)) * c.config.softmax_scale;
    for (auto& sequence : numbers.sequences) {
      const auto width = static_cast<size_t>(c.config.head_dim);
      for (size_t at = 0; at < sequence.keys.size(); at += width) {
        constexpr double kSizes[] = {4000, 4000, 1, 1e-10, 1e-30};
        const auto factor = static_cast<float>(kSizes[random.integer(0, 4)] / score);
        for (size_t d = 0; d < width; ++d) sequence.keys[at + d] *= factor;
      }
    }
    for (float& sink : numbers.sinks) sink *= 1000.0F;
    const auto ours = attend_by_kernels(c, numbers, c.threads);
    for (size_t i = 0; i < ours.size(); ++i) {
      const OracleAttendInput input = oracle_input(c, numbers, i);
      RC_ASSERT(difference_from_oracle(input, ours[i].out, ours[i].lse) == "");
    }
  });
}

TEST(Edges, WhatTheMaskHidesChangesNoBitAndWhatItShowsReachesTheOutput) {
  check_property(300, [] {
    auto c = *attend_cases();
    c.sequences.resize(1);
    const AttendCase::Sequence& sequence = c.sequences[0];
    AttendNumbers numbers = make_numbers(c);
    const Attended clean = attend_by_kernels(c, numbers, c.threads)[0];
    // One key or one value of one token becomes NaN or infinite, in all heads.
    const auto poisoned = *rc::gen::inRange<int64_t>(0, sequence.length());
    const auto poison =
        *rc::gen::element(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity());
    auto& target = *rc::gen::arbitrary<bool>() ? numbers.sequences[0].keys : numbers.sequences[0].values;
    const auto width = static_cast<int64_t>(target.size()) / sequence.length();
    std::fill_n(target.begin() + poisoned * width, width, poison);
    const Attended ours = attend_by_kernels(c, numbers, c.threads)[0];
    const auto out_width = static_cast<size_t>(c.config.num_attention_heads * c.config.v_head_dim);
    for (int64_t query = 0; query < sequence.count; ++query) {
      const size_t first = static_cast<size_t>(query) * out_width;
      const auto row = std::span(ours.out).subspan(first, out_width);
      if (!c.sees(sequence, query, poisoned))
        RC_ASSERT(same_bits(row, std::span(clean.out).subspan(first, out_width)));
      else if (std::isnan(poison))
        RC_ASSERT(std::all_of(row.begin(), row.end(), [](float x) { return std::isnan(x); }));
    }
  });
}

// A slot whose last tenant left NaN everywhere serves the next one as a fresh slot would.
TEST(Edges, WhatASlotHeldBeforeChangesNoBit) {
  check_property(60, [] {
    const auto c = *layer_cases({.longest_text = 200, .small = true});
    const Layer layer(c);
    const AttentionConfig& config = layer.config();
    const auto tokens = *rc::gen::inRange<int64_t>(1, 200);
    Sequence sequence{.hidden = layer.text(tokens)};
    Session session(layer, {.capacity = 300});
    std::vector<float> keys(static_cast<size_t>(300 * config.num_key_value_heads * config.head_dim), NAN);
    std::vector<float> values(static_cast<size_t>(300 * config.num_key_value_heads * config.v_head_dim), NAN);
    session.cache().append({.slot = 0, .first_position = 0, .count = 300},
                           {keys.data(), {300, config.num_key_value_heads, config.head_dim}},
                           {values.data(), {300, config.num_key_value_heads, config.v_head_dim}});
    session.advance(sequence, tokens);
    RC_ASSERT(first_difference(sequence.outputs, prefill_at_once(layer, sequence.hidden)) == "");
  });
}

TEST(Edges, RowsThatSeeNothingAreZeros) {  // [MATH-7], [MATH-21]
  check_property(100, [] {
    auto c = *attend_cases();
    for (auto& sequence : c.sequences) sequence.padding = sequence.length();
    const AttendNumbers numbers = make_numbers(c);
    const auto heads = static_cast<size_t>(c.config.num_attention_heads);
    for (const Attended& ours : attend_by_kernels(c, numbers, c.threads)) {
      RC_ASSERT(std::all_of(ours.out.begin(), ours.out.end(), [](float x) { return x == 0.0F; }));
      for (size_t i = 0; i < ours.lse.size(); ++i) {
        const double expected = numbers.sinks.empty() ? -INFINITY : static_cast<double>(numbers.sinks[i % heads]);
        RC_ASSERT(ours.lse[i] == expected || std::fabs(ours.lse[i] - expected) <= 4e-7 * std::fabs(expected));
      }
    }
  });
}

}  // namespace
}  // namespace regard::test
