// A token's output has the same bits whatever it was scheduled with: hidden state, key, value and log of sums.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "support/property.h"
#include "support/session.h"

namespace regard::test {
namespace {

// Wide layers with short texts, or narrow ones whose texts cross several blocks of 256 keys and pieces of 512 tokens.
struct Scene {
  LayerCase layer;
  int64_t tokens;
};

std::ostream& operator<<(std::ostream& out, const Scene& scene) {
  return out << scene.tokens << " tokens, " << scene.layer;
}

rc::Gen<Scene> scenes(bool bidirectional, int64_t longest_text) {
  return rc::gen::exec([=] {
    const bool is_long = *rc::gen::inRange(0, 3) == 0;
    const int64_t longest = is_long ? longest_text : std::min<int64_t>(longest_text, 64);
    Scene scene;
    scene.layer = *layer_cases({.bidirectional = bidirectional, .longest_text = longest, .small = is_long});
    scene.tokens = *rc::gen::inRange<int64_t>(1, longest + 1);
    return scene;
  });
}

TEST(Schedule, PrefillInChunksEqualsPrefillAtOnce) {
  check_property(200, [] {
    const auto scene = *scenes(false, 1500);
    const Layer layer(scene.layer);
    Sequence sequence{.hidden = layer.text(scene.tokens)};
    Session session(layer, {.capacity = scene.tokens + *rc::gen::inRange<int64_t>(0, 300), .threads = 2});
    while (sequence.done() < scene.tokens) {
      const int64_t most = std::min(scene.tokens - sequence.done(), *rc::gen::element<int64_t>(3, 100, 2000));
      session.advance(sequence, *rc::gen::inRange<int64_t>(1, most + 1));
    }
    RC_ASSERT(first_difference(sequence.outputs, prefill_at_once(layer, sequence.hidden)) == "");
  });
}

// [MASK-27]: pieces of any size don't cut a prefix, whatever the storage; batch-mates and padding change nothing.
TEST(Schedule, APrefixThatSeesItselfEqualsPrefillAtOnce) {
  check_property(200, [] {
    auto scene = *scenes(false, 1500);
    const int64_t most = scene.layer.storage == KvStorage::contiguous ? scene.tokens : KvCache::kTokensAtOnce;
    const auto prefix = *rc::gen::inRange<int64_t>(1, std::min(scene.tokens, most) + 1);
    const Layer layer(scene.layer);
    LayerCase cut = scene.layer;
    if (*rc::gen::arbitrary<bool>())
      cut.config.inference.windowed_context_encoding_size = *rc::gen::inRange<int64_t>(1, scene.tokens + 1);
    const Layer in_pieces(cut);
    std::vector<Sequence> sequences;
    for (int64_t slot = 0; slot < 2; ++slot)
      sequences.push_back({.slot = slot,
                           .hidden = layer.text(scene.tokens, static_cast<uint64_t>(slot)),
                           .outputs = {},
                           .prefix = slot == 0 ? prefix : 0});
    Session session(in_pieces, {.slots = 2, .capacity = scene.tokens, .threads = 2});
    const bool padded = *rc::gen::arbitrary<bool>();
    while (sequences[0].done() < scene.tokens) {
      std::vector<Session::Step> steps;
      for (Sequence& sequence : sequences) {
        const int64_t left = sequence.length() - sequence.done();
        if (left > 0)
          steps.push_back(
              {&sequence, *rc::gen::inRange<int64_t>(std::max<int64_t>(1, sequence.next_prefix()), left + 1)});
      }
      if (*rc::gen::arbitrary<bool>()) std::ranges::reverse(steps);
      if (padded)
        session.advance_padded(steps, *rc::gen::element(Padding::left, Padding::right));
      else
        session.advance(steps);
    }
    RC_ASSERT(first_difference(sequences[0].outputs, prefill_at_once(layer, sequences[0].hidden, prefix)) == "");
  });
}

// [KV-44], [MASK-10]: also with caches of narrow types.
TEST(Schedule, TokenByTokenEqualsPrefill) {
  check_property(100, [] {
    const auto scene = *scenes(false, 600);
    const Layer layer(scene.layer);
    Sequence sequence{.hidden = layer.text(scene.tokens)};
    Session session(layer, {.capacity = scene.tokens, .threads = *rc::gen::element(1, 2)});
    while (sequence.done() < scene.tokens) session.advance(sequence, 1);
    RC_ASSERT(first_difference(sequence.outputs, prefill_at_once(layer, sequence.hidden)) == "");
  });
}

// Sequences that start, prefill and decode next to each other in the same calls.
TEST(Schedule, ABatchOfAnySpansEqualsEachSequenceAlone) {
  check_property(300, [] {
    const auto scene = *scenes(false, 700);
    const Layer layer(scene.layer);
    const auto count = *rc::gen::inRange<int64_t>(2, 6);
    std::vector<Sequence> sequences;
    for (int64_t slot = 0; slot < count; ++slot)
      sequences.push_back(
          {.slot = slot,
           .hidden = layer.text(*rc::gen::inRange<int64_t>(1, scene.tokens + 1), static_cast<uint64_t>(slot))});
    Session session(layer, {.slots = count, .capacity = scene.tokens, .threads = *rc::gen::element(1, 2, 3)});
    for (;;) {
      std::vector<Session::Step> steps;
      for (Sequence& sequence : sequences) {
        const int64_t left = sequence.length() - sequence.done();
        const auto kind = *rc::gen::inRange(0, 3);
        if (left == 0 || (kind == 0 && !steps.empty())) continue;
        // A token as in decode, or a chunk of a prompt.
        const int64_t tokens = kind == 1 ? 1 : *rc::gen::inRange<int64_t>((left + 3) / 4, left + 1);
        steps.insert(*rc::gen::arbitrary<bool>() ? steps.begin() : steps.end(), {&sequence, tokens});
      }
      if (steps.empty()) break;
      session.advance(steps);
    }
    for (const Sequence& sequence : sequences)
      RC_ASSERT(first_difference(sequence.outputs, prefill_at_once(layer, sequence.hidden)) == "");
  });
}

// [MASK-8], [MASK-16]: a sequence that goes on from another one's pages, with sinks, windows and chunks; both then
// write to the page that they share.
TEST(Schedule, ASharedPrefixEqualsAnOwnOne) {
  check_property(150, [] {
    auto scene = *scenes(false, 700);
    draw_storage(scene.layer);
    const Layer layer(scene.layer);
    const int64_t tokens = scene.tokens + 1;
    const auto shared = *rc::gen::inRange<int64_t>(1, tokens);
    Sequence first{.slot = 0, .hidden = layer.text(tokens, 0)};
    Sequence second{.slot = 1, .hidden = layer.text(tokens, 1)};
    const TensorView common = second.hidden.view().slice(0, 0, shared);
    std::memcpy(common.data(), first.hidden.view().data(),
                static_cast<size_t>(common.shape().elements()) * size_of(common.dtype()));
    Session session(layer, {.slots = 2, .capacity = tokens, .threads = 2});
    session.advance(first, shared);
    session.cache().fork(0, 1, shared);
    second.outputs = first.outputs;
    while (first.done() < tokens) {
      const auto count = *rc::gen::inRange<int64_t>(1, tokens - first.done() + 1);
      const Session::Step steps[] = {{&first, count}, {&second, count}};
      session.advance(steps);
    }
    for (const Sequence* sequence : {&first, &second})
      RC_ASSERT(first_difference(sequence->outputs, prefill_at_once(layer, sequence->hidden)) == "");
  });
}

TEST(Schedule, ABatchOfWholeBidirectionalSequencesEqualsEachAlone) {
  check_property(60, [] {
    auto scene = *scenes(false, 700);
    scene.layer.config.is_causal = false;
    draw_storage(scene.layer);
    const Layer layer(scene.layer);
    std::vector<Sequence> sequences;
    std::vector<Session::Step> steps;
    for (int64_t slot = 0; slot < 3; ++slot)
      sequences.push_back(
          {.slot = slot,
           .hidden = layer.text(*rc::gen::inRange<int64_t>(1, scene.tokens + 1), static_cast<uint64_t>(slot))});
    for (Sequence& sequence : sequences) steps.push_back({&sequence, sequence.length()});
    Session session(layer, {.slots = 3, .capacity = scene.tokens, .threads = 2});
    session.advance(steps);
    for (const Sequence& sequence : sequences)
      RC_ASSERT(first_difference(sequence.outputs, prefill_at_once(layer, sequence.hidden)) == "");
  });
}

// Also more threads than rows, heads or blocks of keys.
TEST(Schedule, AnyNumberOfThreadsGivesTheSameBits) {
  check_property(100, [] {
    const auto scene = *scenes(true, 1500);
    const Layer layer(scene.layer);
    const Tensor hidden = layer.text(scene.tokens);
    // A prompt and then a token: a long prefill cuts its work by rows, a decode by keys.
    const auto run = [&](int threads) {
      Sequence sequence{.hidden = hidden};
      Session session(layer, {.capacity = scene.tokens, .threads = threads});
      if (scene.tokens > 1) session.advance(sequence, scene.tokens - 1);
      session.advance(sequence, 1);
      return sequence.outputs;
    };
    const auto one = run(1);
    for (const int threads : {2, 3, 5, 16}) RC_ASSERT(first_difference(run(threads), one) == "");
  });
}

TEST(Schedule, PaddingOnEitherSideEqualsPackedTokens) {
  check_property(300, [] {
    const auto scene = *scenes(true, 400);
    const Layer layer(scene.layer);
    const auto rows = *rc::gen::inRange<int64_t>(1, 5);
    const auto padding = *rc::gen::element(Padding::left, Padding::right);
    Session session(layer, {.slots = rows, .capacity = scene.tokens + 2, .threads = 2});
    std::vector<Sequence> sequences;
    std::vector<Session::Step> prompts;
    std::vector<Session::Step> tokens;
    for (int64_t slot = 0; slot < rows; ++slot)
      sequences.push_back(
          {.slot = slot,
           .hidden = layer.text(*rc::gen::inRange<int64_t>(1, scene.tokens + 1) + 2, static_cast<uint64_t>(slot))});
    for (Sequence& sequence : sequences) {
      prompts.push_back({&sequence, sequence.length() - 2});
      tokens.push_back({&sequence, 1});
    }
    session.advance_padded(prompts, padding);
    session.advance_padded(tokens, padding);
    session.advance_padded(tokens, padding);
    for (const Sequence& sequence : sequences) {
      Sequence packed{.hidden = sequence.hidden};
      Session alone(layer, {.capacity = packed.length()});
      for (const int64_t count : {packed.length() - 2, int64_t{1}, int64_t{1}}) alone.advance(packed, count);
      RC_ASSERT(first_difference(sequence.outputs, packed.outputs) == "");
    }
  });
}

// How many tokens go through a layer together is the library's choice, or the config's [CFG-68], [MASK-7].
TEST(Schedule, PiecesOfAnySizeGiveTheSameBits) {
  check_property(100, [] {
    const auto scene = *scenes(true, 1500);
    const Layer layer(scene.layer);
    LayerCase cut = scene.layer;
    cut.config.inference.windowed_context_encoding_size = *rc::gen::inRange<int64_t>(1, scene.tokens + 2);
    const Layer in_pieces(cut);
    const Tensor hidden = layer.text(scene.tokens);
    RC_ASSERT(first_difference(prefill_at_once(in_pieces, hidden), prefill_at_once(layer, hidden)) == "");
  });
}

}  // namespace
}  // namespace regard::test
