#include "regard/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <vector>

#include "regard/attention.h"
#include "regard/error.h"
#include "support/numbers.h"
#include "support/test_layer.h"

namespace regard {
namespace {

TEST(Threads, EveryTaskRunsOnceByAThreadOfTheTeam) {
  for (const int count : {1, 2, 3, 9})
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      const Threads threads(count);
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      std::atomic<bool> outside = false;
      threads.for_each(tasks, [&](int64_t task, int thread) {
        ++runs[static_cast<size_t>(task)];
        if (thread < 0 || thread >= count) outside = true;
      });
      for (const auto& run : runs) EXPECT_EQ(run, 1);
      EXPECT_FALSE(outside);
    }
}

// What tasks wrote is there when the call returns.
TEST(Threads, TheCallReturnsWhenAllIsDone) {
  const Threads threads(3);
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::vector<int64_t> squares(50);
    threads.for_each(50, [&](int64_t task, int) { squares[static_cast<size_t>(task)] = task * task; });
    for (int64_t task = 0; task < 50; ++task) ASSERT_EQ(squares[static_cast<size_t>(task)], task * task);
  }
}

TEST(Threads, ZeroTakesOnePerCoreAndLessIsRefused) {
  EXPECT_GE(Threads(0).count(), 1);
  EXPECT_EQ(Threads(5).count(), 5);
  EXPECT_THROW(Threads(-1), Error);
  EXPECT_THROW(Workspace(-1), Error);
}

// A workspace keeps memory, and nothing else, from call to call and from layer to layer.
TEST(Workspace, ServesLayersOfAnySizeWithTheBitsOfAFreshOne) {
  Workspace shared(2);
  for (const int64_t heads : {2, 8, 1, 4}) {
    AttentionConfig config{.hidden_size = 8 * heads, .num_attention_heads = heads, .num_key_value_heads = 1};
    config.rotary_emb = RotaryConfig{};
    const Attention attention = test::random_layer(config, static_cast<uint64_t>(heads)).load();
    for (const int64_t tokens : {5, 300, 1}) {
      const Tensor hidden = test::Numbers(121).tensor({tokens, 8 * heads});
      AttentionInput input;
      input.hidden_states = hidden;
      const auto alone = test::bytes_of(attention.forward(input).hidden_states);
      input.workspace = &shared;
      EXPECT_EQ(test::bytes_of(attention.forward(input).hidden_states), alone);
    }
  }
}

TEST(Workspace, SurvivesAMove) {
  Workspace first(2);
  const Workspace second = std::move(first);
  EXPECT_EQ(second.threads().count(), 2);
}

}  // namespace
}  // namespace regard
