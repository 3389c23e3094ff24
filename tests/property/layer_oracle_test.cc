// Whole layers against the oracle, with every option of the config.
#include "support/layer_oracle.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/property.h"

namespace regard::test {
namespace {

// [KV-44]: the oracle attends to what the cache holds of all tokens, those of the call included.
TEST(Layers, EqualTheOracleThroughACacheInAnySchedule) {
  check_property(800, [] {
    const auto c = *layer_cases({});
    const Layer layer(c);
    const auto tokens = *rc::gen::inRange<int64_t>(1, 64);
    const bool has_prefix = c.config.is_causal && *rc::gen::inRange(0, 3) == 0;
    Sequence sequence{.hidden = layer.text(tokens),
                      .outputs = {},
                      .prefix = has_prefix ? *rc::gen::inRange<int64_t>(1, tokens + 1) : 0};
    Session session(layer, {.capacity = tokens, .threads = *rc::gen::element(1, 2)});
    // A bidirectional layer sees what a call brings: its whole sequence.
    while (sequence.done() < tokens) {
      const int64_t left = tokens - sequence.done();
      const int64_t least = std::max<int64_t>(1, sequence.next_prefix());
      session.advance(sequence, c.config.is_causal ? *rc::gen::inRange<int64_t>(least, left + 1) : left);
    }
    RC_ASSERT(difference_from_oracle(layer, sequence) == "");
  });
}

// Several runs of tokens that see only themselves, with all that a call may bring along: the norm before the
// projection, a residual, positions of their own for the rotation.
TEST(Layers, EqualTheOracleWithoutACache) {
  check_property(400, [] {
    auto c = *layer_cases({.longest_text = 20});
    c.hidden_dtype = DType::f32;
    c.config.rms_norm_eps = 1e-4;
    const Layer layer(c);
    const auto counts = *rc::gen::container<std::vector<int64_t>>(2, rc::gen::inRange<int64_t>(1, 24));
    const bool norms = *rc::gen::arbitrary<bool>();
    const bool adds = *rc::gen::arbitrary<bool>();
    const bool rotates = *rc::gen::arbitrary<bool>();
    const int64_t tokens = counts[0] + counts[1];
    const Tensor hidden = layer.text(tokens, 0);
    const Tensor residual = layer.text(tokens, 1);
    Random random(c.seed);
    auto gain = random.normals(layer.config().input_size(), 0.2, 1.0);
    std::vector<int64_t> rotary;
    for (int64_t i = 0; i < tokens; ++i) rotary.push_back(random.integer(0, 2000));

    std::vector<Span> spans;
    for (const int64_t count : counts) {
      const bool has_prefix = c.config.is_causal && *rc::gen::inRange(0, 3) == 0;
      spans.push_back({.slot = 0,
                       .first_position = *rc::gen::inRange<int64_t>(0, 400),
                       .count = count,
                       .prefix = has_prefix ? *rc::gen::inRange<int64_t>(1, count + 1) : 0});
    }
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = spans;
    input.lse = true;
    input.present_key_value = true;
    if (norms) input.rmsnorm = {gain.data(), {layer.config().input_size()}};
    if (adds) input.residual = residual;
    if (rotates) input.rotary_position_ids = rotary;
    const auto ours = token_outputs(layer.attention().forward(input));

    int64_t first = 0;
    for (const Span& span : spans) {
      OracleInput expected{.hidden_states = oracle_matrix(hidden.view().slice(0, first, span.count)),
                           .first_position = span.first_position,
                           .prefix = span.prefix};
      if (norms) expected.rmsnorm = gain;
      if (adds) expected.residual = oracle_matrix(residual.view().slice(0, first, span.count));
      if (rotates) expected.rotary_position_ids.assign(rotary.begin() + first, rotary.begin() + first + span.count);
      RC_ASSERT(difference_from_oracle(
                    layer, expected,
                    std::span(ours).subspan(static_cast<size_t>(first), static_cast<size_t>(span.count))) == "");
      first += span.count;
    }
  });
}

}  // namespace
}  // namespace regard::test
