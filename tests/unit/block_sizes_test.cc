// Blocks of work follow the sizes of caches; bits do not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "kernels/attend_layout.h"
#include "regard/attention.h"
#include "regard/error.h"
#include "support/error_of.h"
#include "support/numbers.h"
#include "support/stored_weight.h"
#include "support/test_layer.h"

namespace regard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

// Blocks as small as they get, in between, usual, and as large as they get.
const CacheSizes kSizes[] = {{.l1 = 1, .l2 = 1, .last_level = 1},
                             {.l1 = 1 << 12, .l2 = 150 << 10, .last_level = 1 << 20},
                             {.l1 = 1 << 15, .l2 = 300 << 10, .last_level = 1 << 22},
                             {},
                             {.l1 = int64_t{1} << 40, .l2 = int64_t{1} << 40, .last_level = int64_t{1} << 40}};

Workspace workspace_of(const CacheSizes& caches, int threads) {
  return Workspace(WorkspaceOptions{.threads = threads, .caches = caches});
}

TEST(BlockSizes, TheSizesOfTheseTestsGiveDifferentBlocks) {
  const kernels::AttendShape shape{.heads = 6, .kv_heads = 2, .head_dim = 64, .v_head_dim = 64};
  EXPECT_EQ(kernels::AttendLayout::fitting_rows(shape, kSizes[0]), 48);
  EXPECT_EQ(kernels::AttendLayout::fitting_rows(shape, kSizes[2]), 192);
  EXPECT_EQ(kernels::AttendLayout::fitting_rows(shape, kSizes[4]), 240);
}

// A prompt of 300 tokens, then one token, then some more.
Bytes prefill_and_decode(const Attention& attention, DType dtype, Workspace& workspace) {
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = 320, .dtype = dtype}, attention.config());
  test::Numbers numbers(181);
  Bytes all;
  for (const Span& span :
       {Span{.count = 300}, Span{.first_position = 300, .count = 1}, Span{.first_position = 301, .count = 19}}) {
    const Tensor hidden = numbers.tensor({span.count, attention.config().hidden_size});
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = std::span(&span, 1);
    input.cache = &cache;
    input.lse = true;
    input.workspace = &workspace;
    const auto output = attention.forward(input);
    for (const Tensor& tensor : {output.hidden_states, output.lse}) {
      const Bytes bytes = test::bytes_of(tensor);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
  }
  return all;
}

TEST(BlockSizes, AttentionHasTheSameBits) {
  for (const int64_t window : {0, 70})
    for (const int64_t kv_heads : {1, 2}) {
      AttentionConfig config{
          .hidden_size = 40, .num_attention_heads = 6, .num_key_value_heads = kv_heads, .head_dim = 64};
      config.rotary_emb = RotaryConfig{};
      config.learned_sinks_size = 1;
      config.sliding_window = window;
      const Attention attention = test::random_layer(config, 182).load();
      for (const DType dtype : {DType::f32, DType::bf16, DType::i8, DType::i4})
        for (const int threads : {1, 2}) {
          Bytes expected;
          for (const CacheSizes& caches : kSizes) {
            SCOPED_TRACE(::testing::Message() << "window " << window << ", " << kv_heads << " KV heads, "
                                              << name_of(dtype) << ", " << threads << " threads, L2 " << caches.l2);
            Workspace workspace = workspace_of(caches, threads);
            const Bytes actual = prefill_and_decode(attention, dtype, workspace);
            if (expected.empty()) expected = actual;
            EXPECT_TRUE(actual == expected);
          }
        }
    }
}

TEST(BlockSizes, ProjectionsHaveTheSameBitsForEveryWeightType) {
  for (const WeightType type : test::kAllWeightTypes) {
    const Linear layer =
        Linear::load(test::random_weight(type, 75, 512, 183).view(), test::Numbers(184).floats(75), Threads(1));
    const Linear* const layers[] = {&layer};
    for (const int64_t tokens : {1, 7, 40, 300}) {
      const Tensor x = test::Numbers(185).tensor({tokens, 512});
      Bytes expected;
      for (const CacheSizes& caches : kSizes) {
        SCOPED_TRACE(::testing::Message() << name_of(type) << ", " << tokens << " tokens, L2 " << caches.l2);
        Workspace workspace = workspace_of(caches, 2);
        const Tensor out(DType::f32, {tokens, 75});
        const TensorView outs[] = {out};
        apply(layers, x, outs, workspace);
        const Bytes actual = test::bytes_of(out);
        if (expected.empty()) expected = actual;
        EXPECT_TRUE(actual == expected);
      }
    }
  }
}

TEST(BlockSizes, SizesBelowOneAreRefused) {
  for (const int64_t size : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min()})
    for (const CacheSizes& caches : {CacheSizes{.l1 = size}, CacheSizes{.l2 = size}, CacheSizes{.last_level = size}})
      EXPECT_THAT(error_of([&] { workspace_of(caches, 1); }), HasSubstr("workspace: cache sizes are"));
  EXPECT_EQ(error_of([] { workspace_of({.l1 = 1, .l2 = 1, .last_level = 1}, 1); }), "");
}

// As the library chooses where nobody says: each level at least as large as the one before.
TEST(BlockSizes, TheMachinesSizesAreInOrder) {
  const CacheSizes& sizes = CacheSizes::of_machine();
  EXPECT_GE(sizes.l1, 1 << 12);
  EXPECT_GE(sizes.l2, sizes.l1);
  EXPECT_GE(sizes.last_level, sizes.l2);
  EXPECT_EQ(Workspace(1).options().caches.l2, sizes.l2);
}

}  // namespace
}  // namespace regard
