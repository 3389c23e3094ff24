#include "regard/threads.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <span>
#include <thread>
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

// How often every task of a call runs.
class Runs {
 public:
  explicit Runs(int64_t tasks) : runs_(static_cast<size_t>(tasks)) {}

  // Each task also counts to `steps`: others get the time to take one.
  void run_on(const Threads& threads, int steps = 0) {
    threads.for_each(static_cast<int64_t>(runs_.size()), [&](int64_t task, int) {
      ++runs_[static_cast<size_t>(task)];
      std::atomic<int> count = 0;
      while (count < steps) ++count;
    });
  }
  [[nodiscard]] bool all_are(int count) const {
    return std::all_of(runs_.begin(), runs_.end(), [&](const auto& run) { return run == count; });
  }

 private:
  std::vector<std::atomic<int>> runs_;
};

// Some rounds of a job each, by as many callers, all at once.
void expect_all_run(std::span<const Threads> callers_threads) {
  constexpr int kRounds = 3000;
  std::atomic<size_t> ready = 0;
  std::atomic<int> wrong = 0;
  std::vector<std::thread> callers;
  for (const Threads& threads : callers_threads)
    callers.emplace_back([&ready, &wrong, &threads, count = callers_threads.size()] {
      ++ready;
      while (ready < count) std::this_thread::yield();
      for (int round = 0; round < kRounds; ++round) {
        Runs runs(1 + round % 50);
        runs.run_on(threads, round % 10);
        if (!runs.all_are(1)) ++wrong;
      }
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Threads, EveryTaskOfTwoCallersAtOnceRunsOnce) {
  for (const int count : {1, 2, 3, 9}) {
    SCOPED_TRACE(count);
    const Threads threads(count);
    const Threads both[] = {threads, threads};
    expect_all_run(both);
  }
}

// While one copy is at work, another finds the team busy: its caller does everything itself, as thread 0.
TEST(Threads, CopiesShareTheTeam) {
  const Threads threads(3);
  const Threads copy(threads);
  EXPECT_EQ(copy.count(), 3);
  std::atomic<int> by_caller = 0;
  threads.for_each(2, [&](int64_t task, int) {
    if (task != 0) return;
    std::thread([&] {
      const auto caller = std::this_thread::get_id();
      copy.for_each(20, [&](int64_t, int thread) { by_caller += thread == 0 && std::this_thread::get_id() == caller; });
    }).join();
  });
  EXPECT_EQ(by_caller, 20);
}

TEST(Threads, LittleWorkIsDoneByTheCallerAlone) {
  const Threads threads(3);
  EXPECT_EQ(threads.for_work(0).count(), 1);
  EXPECT_EQ(threads.for_work(1000).count(), 1);
  EXPECT_EQ(threads.for_work(10'000'000).count(), 3);
  EXPECT_EQ(threads.for_work(std::numeric_limits<int64_t>::max()).count(), 3);
  EXPECT_EQ(Threads(1).for_work(10'000'000).count(), 1);
  Runs runs(100);
  runs.run_on(threads.for_work(1000));
  runs.run_on(threads.for_work(10'000'000));
  EXPECT_TRUE(runs.all_are(2));
}

// Helpers that come late to a job must not take tasks of the next one for its own.
TEST(Threads, EveryTaskOfThousandsOfTinyJobsRunsOnce) {
  for (const int count : {2, 3, 9}) {
    SCOPED_TRACE(count);
    const Threads threads(count);
    for (int job = 0; job < 5000; ++job) {
      Runs runs(2 + job % 5);
      runs.run_on(threads, job % 100);
      ASSERT_TRUE(runs.all_are(1)) << job;
    }
  }
}

TEST(Threads, ATeamThatSleptRunsAllTasks) {
  const Threads threads(3);
  for (int job = 0; job < 40; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    Runs runs(40);
    runs.run_on(threads);
    ASSERT_TRUE(runs.all_are(1)) << job;
  }
}

// The others are woken up: a caller that is kept busy by one task finds that somebody else did the rest.
TEST(Threads, ATeamThatSleptHelps) {
  const Threads threads(2);
  for (int job = 0; job < 10; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> begun = 0;
    // Each of the two tasks waits for the other: one thread alone would never return.
    threads.for_each(2, [&](int64_t, int) {
      ++begun;
      while (begun < 2) std::this_thread::yield();
    });
    EXPECT_EQ(begun, 2);
  }
}

TEST(Threads, ATeamEndsRightAfterItsWork) {
  for (const int count : {2, 5})
    for (int repeat = 0; repeat < 200; ++repeat) {
      Runs runs(8);
      runs.run_on(Threads(count));
      ASSERT_TRUE(runs.all_are(1));
    }
}

TEST(Threads, ATeamWithoutWorkOrAsleepEndsToo) {
  for (int repeat = 0; repeat < 200; ++repeat) (void)Threads(4);
  for (int repeat = 0; repeat < 10; ++repeat) {
    const Threads threads(3);
    Runs(8).run_on(threads);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
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
