// What calls need beside inputs, outputs and caches does not grow with the sequence. Peaks are of the process: each
// test has one of its own under ctest.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "regard/attend.h"
#include "regard/attention.h"
#include "regard/model.h"
#include "support/numbers.h"
#include "support/temp_folder.h"
#include "support/test_layer.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

#ifndef REGARD_SANITIZED  // which keep freed memory, and shadows of it all

// Kilobytes of this process: "VmRSS" is what it holds now, "VmHWM" the most it has held.
int64_t kilobytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == name + ":") {
      int64_t number = 0;
      status >> number;
      return number;
    }
  return 0;
}

// How far the peak rises above what is held before `work`. The kernel takes the older peak back first, where it may.
template <class Work>
int64_t peak_growth(Work&& work) {
  std::ofstream("/proc/self/clear_refs") << 5;
  const int64_t before = kilobytes("VmRSS");
  work();
  return kilobytes("VmHWM") - before;
}

constexpr int64_t kMost = 16 << 10;  // 16 MB

constexpr int64_t kTokens = 1 << 17;

AttentionConfig small_layer() {
  AttentionConfig config{.hidden_size = 64, .num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 32};
  config.sliding_window = 64;
  config.rotary_emb = RotaryConfig{};
  return config;
}

// A cache whose memory is all there, and holds `tokens` tokens.
KvCache touched_cache(const AttentionConfig& config, int64_t tokens) {
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = kTokens, .dtype = DType::bf16}, config);
  const Tensor some = test::Numbers(171).tensor({4096, 1, 32});
  for (int64_t first = 0; first < kTokens; first += 4096)
    cache.append({.slot = 0, .first_position = first, .count = 4096}, some, some);
  cache.truncate(0, tokens);
  return cache;
}

TEST(ScratchMemory, ThePeakOfTheProcessIsSeen) {
  EXPECT_GT(peak_growth([] {
              Buffer buffer(40 << 20);
              for (size_t at = 0; at < buffer.size(); at += 4096) buffer.data()[at] = std::byte{1};
            }),
            39 << 10);
}

// An f32 of a head for every token, [tokens, 32], would be 16 MB by itself.
TEST(ScratchMemory, APrefillOfALongSequenceTakesAsMuchAsAShortOne) {
  const Attention attention = test::random_layer(small_layer(), 172).load();
  KvCache cache = touched_cache(attention.config(), 0);
  const Tensor hidden(DType::f32, {kTokens, 64});
  const Tensor output(DType::f32, {kTokens, 64});
  test::Numbers numbers(173);
  for (float& number : hidden.elements<float>()) number = numbers.next();
  for (float& number : output.elements<float>()) number = 1;
  AttentionInput input;
  const Span span{.slot = 0, .count = kTokens};
  Workspace workspace(2);
  input.hidden_states = hidden;
  input.spans = std::span(&span, 1);
  input.output = output;
  input.cache = &cache;
  input.workspace = &workspace;
  EXPECT_LT(peak_growth([&] { (void)attention.forward(input); }), kMost);
  EXPECT_NE(output.elements<float>().back(), 1);
}

// Few tokens over all the keys of a long sequence: threads share the keys, and keep partial results of their blocks.
// One thread, which keeps none, gives the same bits.
TEST(ScratchMemory, AChunkAtTheEndOfALongSequenceTakesAsMuchAsAShortOne) {
  const KvCache cache = touched_cache(small_layer(), kTokens);
  for (const int64_t tokens : {1, 16, 100, 500}) {
    const Tensor queries = test::Numbers(174).tensor({tokens, 2, 32});
    const auto run = [&](int threads) {
      const Tensor output = test::Numbers(175).tensor({tokens, 2, 32});
      const Span span{.slot = 0, .first_position = kTokens - tokens, .count = tokens};
      Workspace workspace(threads);
      EXPECT_LT(peak_growth([&] {
                  attend({.queries = queries,
                          .spans = std::span(&span, 1),
                          .cache = &cache,
                          .output = output,
                          .workspace = &workspace});
                }),
                kMost)
          << tokens << " tokens, " << threads << " threads";
      return test::bytes_of(output);
    };
    const auto alone = run(1);
    for (const int threads : {2, 5}) EXPECT_EQ(run(threads), alone) << tokens << " tokens, " << threads << " threads";
  }
}

// What is packed takes the place of the file's pages, layer by layer: without that, loading would hold both.
TEST(ScratchMemory, LoadingHoldsTheFilesPagesOfALayerAtATime) {
  const test::TinyLlama tiny{.layers = 8, .hidden = 384, .heads = 6, .kv_heads = 6, .intermediate = 1024};
  const test::TempFolder folder;
  const auto path = folder.write("model.gguf", tiny.gguf().build());
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path));
  ASSERT_GT(bytes, int64_t{40} << 20);
  const auto checkpoint = Checkpoint::open(path);
  std::optional<Model> model;
  const int64_t growth = peak_growth([&] { model.emplace(Model::load(checkpoint, Threads(2))); });
  EXPECT_LT(growth << 10, bytes * 4 / 3);
}

#endif

}  // namespace
}  // namespace regard
