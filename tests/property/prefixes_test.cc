// Random sequences that share prefixes in pools that are too small for all of them, next to their plain texts.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "regard/attention_config.h"
#include "regard/block_table.h"
#include "regard/error.h"
#include "support/property.h"
#include "support/random.h"
#include "support/text_cache.h"

namespace regard::test {
namespace {

using Text = std::vector<int32_t>;

constexpr int64_t kPage = 16;
constexpr int64_t kCapacity = 160;

AttentionConfig layer(int64_t window, int64_t chunk) {
  AttentionConfig config{.hidden_size = 8, .num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 4};
  config.sliding_window = window;
  config.attention_chunk_size = chunk;
  return config;
}

// A layer that keeps all, one with a window, one with chunks, each with a pool of its own.
ModelCache any_cache(Random& random) {
  std::vector<KvCache> layers;
  const std::vector<AttentionConfig> configs = {layer(0, 0), layer(random.integer(1, 50), 0),
                                                layer(0, random.integer(1, 50)), layer(0, 0)};
  for (const AttentionConfig& config : configs)
    layers.push_back(KvCache::paged({.slots = 4,
                                     .capacity = kCapacity,
                                     .dtype = DType::f32,
                                     .page_size = kPage,
                                     .pages = random.integer(10, 30),
                                     .speculation_length = random.integer(0, 4)},
                                    config));
  return {std::move(layers), true};
}

// Texts that often begin alike: a part of one of three, and a tail of few different tokens.
Text any_text(Random& random) {
  const int64_t kind = random.integer(1, 3);
  Text text;
  for (int64_t i = random.integer(0, 110); i > 0; --i)
    text.push_back(static_cast<int32_t>(kind * (100 + std::ssize(text))));
  for (int64_t i = random.integer(1, 30); i > 0; --i) text.push_back(static_cast<int32_t>(random.integer(0, 1)));
  return text;
}

class Sequences {
 public:
  explicit Sequences(uint64_t seed) : random_(seed), cache_(any_cache(random_)) {}

  void step() {
    switch (random_.integer(0, 6)) {
      case 0:
      case 1:
        return open();
      case 2:
        return grow();
      case 3:
        return draft();
      case 4:
        return fork();
      case 5:
        return go_back();
      default:
        return close();
    }
  }

  void compare() {
    RC_ASSERT(cache_.free_slots() == cache_.slots() - std::ssize(texts_));
    for (const auto& [slot, text] : texts_) RC_ASSERT(wrong_contents(cache_, slot, text) == std::nullopt);
  }

  // Nothing is lost: once nobody is left, a layer's whole memory can be had.
  void end() {
    for (const auto& [slot, text] : texts_) cache_.close(slot);
    texts_.clear();
    const int64_t slot = cache_.open({}).value().slot;
    int64_t pages = kCapacity / kPage;
    for (const KvCache& each : cache_.layers()) pages = std::min(pages, each.block_tables().pages());
    const Span all{.slot = slot, .first_position = 0, .count = pages * kPage};
    RC_ASSERT(cache_.make_room({&all, 1}));
  }

 private:
  void open() {
    const Text text = any_text(random_);
    const auto opened = cache_.open(text, static_cast<uint64_t>(random_.integer(0, 1)));
    RC_ASSERT(opened.has_value() == (std::ssize(texts_) < cache_.slots()));
    if (!opened) return;
    RC_ASSERT(opened->length < std::ssize(text) && opened->length % kPage == 0);
    texts_[opened->slot] = Text(text.begin(), text.begin() + opened->length);
    compare();
    run(opened->slot, text);
  }

  // What there is no room for goes, as a scheduler would have it.
  void run(int64_t slot, const Text& text) {
    texts_[slot] = text;
    if (run_text(cache_, slot, text, random_.integer(1, 50))) return;
    cache_.close(slot);
    texts_.erase(slot);
  }

  void grow() {
    if (texts_.empty()) return;
    const auto& [slot, text] = any_sequence();
    Text longer = text;
    for (int64_t i = random_.integer(1, 20); i > 0 && std::ssize(longer) < kCapacity; --i)
      longer.push_back(static_cast<int32_t>(random_.integer(0, 1)));
    run(slot, longer);
  }

  // A token tree, one branch of which is accepted: its tokens' numbers are those of the text with this branch alone.
  void draft() {
    if (texts_.empty()) return;
    auto& sequence = any_sequence();
    const int64_t slot = sequence.first;
    Text& text = sequence.second;
    const int64_t first = std::ssize(text);
    const Span span{.slot = slot, .first_position = first, .count = random_.integer(1, 5)};
    if (first + span.count > kCapacity || !cache_.make_room({&span, 1})) return;
    std::vector<int64_t> accepted;
    Text branch = text;
    for (int64_t i = 0; i < span.count; ++i) {
      const bool is_right = random_.integer(0, 1) == 0;
      if (is_right) accepted.push_back(i);
      if (is_right) branch.push_back(static_cast<int32_t>(random_.integer(0, 1)));
      append_token(cache_, slot, first + i, is_right ? branch : Text{-1});
    }
    if (refused([&] { cache_.accept(slot, first, accepted); })) {
      // More tokens than a layer can take back: then none has.
      for (const KvCache& layer : cache_.layers()) RC_ASSERT(layer.length(slot) == first + span.count);
      cache_.close(slot);
      texts_.erase(slot);
      return;
    }
    text = branch;
    cache_.commit(slot, text);
  }

  void fork() {
    if (texts_.empty()) return;
    const auto sequence = any_sequence();
    const int64_t slot = sequence.first;
    const Text& text = sequence.second;
    const int64_t length = random_.integer(0, std::ssize(text));
    std::optional<int64_t> to;
    if (refused([&] { to = cache_.fork(slot, length); }) || !to) return;
    texts_[*to] = Text(text.begin(), text.begin() + length);
  }

  void go_back() {
    if (texts_.empty()) return;
    auto& sequence = any_sequence();
    const int64_t slot = sequence.first;
    Text& text = sequence.second;
    const int64_t length = random_.integer(0, std::ssize(text));
    const bool all_can = std::ranges::all_of(cache_.layers(), [&](const KvCache& layer) {
      return length == 0 || layer.first_held(slot) <= layer.first_seen(length);
    });
    if (all_can && random_.integer(0, 1) == 0) {
      // Behind the cache's back, as appending below the length does it.
      for (KvCache& layer : cache_.layers()) layer.truncate(slot, length);
    } else if (refused([&] { cache_.truncate(slot, length); })) {
      RC_ASSERT(!all_can);
      return;
    }
    text.resize(static_cast<size_t>(length));
    if (random_.integer(0, 1) == 0) cache_.commit(slot, text);
  }

  void close() {
    if (texts_.empty()) return;
    const int64_t slot = any_sequence().first;
    cache_.close(slot);
    texts_.erase(slot);
  }

  std::pair<const int64_t, Text>& any_sequence() {
    return *std::next(texts_.begin(), random_.integer(0, std::ssize(texts_) - 1));
  }

  template <class Work>
  static bool refused(Work&& work) {
    try {
      work();
      return false;
    } catch (const Error&) {
      return true;
    }
  }

  Random random_;
  ModelCache cache_;
  std::map<int64_t, Text> texts_;  // by slot
};

// [KV-9], [KV-26]: sequences have the contents of their own texts, whoever computed them, and whoever was given up for
// them; an operation that is refused changes no layer.
TEST(Prefixes, NoSequenceSeesAnothersTokensAndNoPageIsLost) {
  check_property(3000, [] {
    const auto seed = *rc::gen::arbitrary<uint32_t>();
    Sequences sequences(seed);
    for (int i = 0; i < 40; ++i) {
      sequences.step();
      sequences.compare();
    }
    sequences.end();
  });
}

}  // namespace
}  // namespace regard::test
