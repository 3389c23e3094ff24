// Every path through the layer, with every mask, cache type and number of sinks, against the oracle: none drops the
// sinks, the window or the rounding of the cache.
#include <gtest/gtest.h>

#include "support/layer_oracle.h"
#include "support/sanitized.h"

namespace regard::test {
namespace {

// Past one block of 256 keys.
constexpr int64_t kTokens = 270;

struct MaskCase {
  const char* name;
  bool is_causal;
  int64_t window;
  int64_t chunk;
};
constexpr MaskCase kMasks[] = {{"causal", true, 0, 0},
                               {"window", true, 9, 0},
                               {"long window", true, 260, 0},
                               {"chunk", true, 0, 32},
                               {"window and chunk", true, 9, 32},
                               {"bidirectional", false, 0, 0}};

constexpr DType kCacheTypes[] = {DType::f32, DType::bf16,    DType::f16,    DType::i8,
                                 DType::i4,  DType::f8_e4m3, DType::f8_e5m2};

// The storages that such a layer may have.
std::vector<KvStorage> storages_of(const MaskCase& mask) {
  std::vector<KvStorage> storages = {KvStorage::contiguous, KvStorage::paged};
  if (mask.window > 0) storages.push_back(KvStorage::ring);
  if (mask.chunk > 0) storages.push_back(KvStorage::chunk);
  return storages;
}

LayerCase layer_with(const MaskCase& mask, int64_t sinks, DType cache_dtype, KvStorage storage) {
  LayerCase c;
  c.config.hidden_size = 24;
  c.config.num_attention_heads = 4;
  c.config.num_key_value_heads = 2;
  c.config.head_dim = 16;
  c.config.rotary_emb = RotaryConfig{};
  c.config.is_causal = mask.is_causal;
  c.config.sliding_window = mask.window;
  c.config.attention_chunk_size = mask.chunk;
  c.config.learned_sinks_size = sinks;
  c.config.inference.seq_len = kTokens;
  c.cache_dtype = cache_dtype;
  c.storage = storage;
  c.seed = 20;
  return c;
}

// A way to compute two sequences; both end with all their tokens done.
struct Path {
  const char* name;
  bool causal_only;  // whether a sequence comes in several calls
  void (*run)(Session& session, Sequence& a, Sequence& b);
};

void prefill(Session& session, Sequence& a, Sequence& b) {
  session.advance(a, a.length());
  session.advance(b, b.length());
}

void prefill_in_chunks(Session& session, Sequence& a, Sequence& b) {
  for (Sequence* sequence : {&a, &b})
    while (sequence->done() < sequence->length())
      session.advance(*sequence, std::min<int64_t>(100, sequence->length() - sequence->done()));
}

void decode(Session& session, Sequence& a, Sequence& b) {
  for (Sequence* sequence : {&a, &b})
    while (sequence->done() < sequence->length()) session.advance(*sequence, 1);
}

// b decodes while chunks of a's prompt come in.
void mixed(Session& session, Sequence& a, Sequence& b) {
  session.advance(b, b.length() - 3);
  for (int i = 0; i < 3; ++i) {
    const Session::Step steps[] = {{&a, a.length() / 3}, {&b, 1}};
    session.advance(steps);
  }
}

void padded_on(Padding padding, Session& session, Sequence& a, Sequence& b) {
  const Session::Step steps[] = {{&a, a.length()}, {&b, b.length()}};
  session.advance_padded(steps, padding);
}

// Prompts of different lengths in one batch, then a batch of single tokens.
void padded_then_decode(Session& session, Sequence& a, Sequence& b) {
  const Session::Step prompts[] = {{&a, a.length() - 1}, {&b, b.length() - 1}};
  const Session::Step tokens[] = {{&a, 1}, {&b, 1}};
  session.advance_padded(prompts, Padding::right);
  session.advance_padded(tokens, Padding::right);
}

constexpr Path kPaths[] = {
    {"prefill", false, prefill},
    {"prefill in chunks", true, prefill_in_chunks},
    {"decode", true, decode},
    {"prefill and decode mixed", true, mixed},
    {"padded on the right", false,
     [](Session& session, Sequence& a, Sequence& b) { padded_on(Padding::right, session, a, b); }},
    {"padded on the left", false,
     [](Session& session, Sequence& a, Sequence& b) { padded_on(Padding::left, session, a, b); }},
    {"padded, then decode", true, padded_then_decode},
};

void expect_path_equals_oracle(const Path& path, const LayerCase& c) {
  const Layer layer(c);
  Session session(layer, {.slots = 2, .capacity = kTokens, .threads = 2});
  Sequence a{.slot = 0, .hidden = layer.text(kTokens, 0)};
  Sequence b{.slot = 1, .hidden = layer.text(kTokens / 2, 1)};
  path.run(session, a, b);
  ASSERT_EQ(a.done(), a.length());
  ASSERT_EQ(b.done(), b.length());
  EXPECT_EQ(difference_from_oracle(layer, a), "");
  EXPECT_EQ(difference_from_oracle(layer, b), "");
}

class PathTable : public ::testing::TestWithParam<Path> {};

TEST_P(PathTable, EqualsTheOracleWithEveryMaskCacheAndNumberOfSinks) {
  for (const MaskCase& mask : kMasks) {
    if (GetParam().causal_only && !mask.is_causal) continue;
    for (const int64_t sinks : {0, 1, 2})
      for (size_t type = 0; type < std::size(kCacheTypes); ++type) {
        // Each cache type with one number of sinks.
        if (kSanitized && (static_cast<size_t>(sinks) + type) % 3 != 0) continue;
        const DType cache = kCacheTypes[type];
        for (const KvStorage storage : storages_of(mask)) {
          SCOPED_TRACE(std::string(mask.name) + ", " + std::to_string(sinks) + " sinks, cache " +
                       std::string(name_of(cache)) + " in storage " + std::to_string(static_cast<int>(storage)));
          expect_path_equals_oracle(GetParam(), layer_with(mask, sinks, cache, storage));
        }
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, PathTable, ::testing::ValuesIn(kPaths), [](const auto& test) {
  std::string name = test.param.name;
  std::erase_if(name, [](char c) { return c == ' ' || c == ','; });
  return name;
});

}  // namespace
}  // namespace regard::test
