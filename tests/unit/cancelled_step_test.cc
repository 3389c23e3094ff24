// A call of the model that is left between layers, and who recovers from it.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <optional>

#include "regard/engine.h"
#include "regard/model_cache.h"
#include "support/expect_error.h"
#include "support/test_model.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

constexpr int64_t kLayers = 5;
const TinyLlama kLlama{.layers = kLayers, .context = 256};

std::vector<int32_t> text(int64_t count, int32_t first = 1) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Says true at the `time`-th time that it is asked, counted from 0, and ever after.
struct FromTime {
  int64_t time;
  int64_t asked = 0;

  [[nodiscard]] std::function<bool()> question() {
    return [this] { return asked++ >= time; };
  }
};

std::vector<float> copy_of(ConstTensorView logits) {
  const auto* first = logits.as<float>();
  return {first, first + logits.shape().elements()};
}

TEST(CancelledCall, IsLeftBeforeTheLayerThatSaysSoAndItsSlotServesAgainOnceCleared) {
  const TestModel model(kLlama);
  const auto tokens = text(20);
  const Span span{.slot = 1, .first_position = 0, .count = 20};
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    SCOPED_TRACE(layer);
    Workspace workspace(1);
    std::vector<KvCache> caches = model.decoder().make_caches({.slots = 2, .capacity = 64});
    std::vector<KvCache> fresh = model.decoder().make_caches({.slots = 2, .capacity = 64});
    FromTime from{.time = layer};
    const auto run = [&](std::vector<KvCache>& into, const Model::ForwardOptions& options) {
      return copy_of(model.decoder().forward(tokens, {&span, 1}, into, options, workspace));
    };
    EXPECT_THROW((void)run(caches, {.cancelled = from.question()}), Cancelled);
    EXPECT_EQ(from.asked, layer + 1);
    for (int64_t i = 0; i < kLayers; ++i) EXPECT_EQ(caches[static_cast<size_t>(i)].length(1), i < layer ? 20 : 0) << i;
    for (KvCache& cache : caches) cache.truncate(1, 0);
    EXPECT_EQ(run(caches, {}), run(fresh, {}));
  }
}

TEST(CancelledCall, IsNoneWhereNobodySaysSo) {
  const TestModel model(kLlama);
  Workspace workspace(1);
  std::vector<KvCache> caches = model.decoder().make_caches({.slots = 1, .capacity = 64});
  const auto tokens = text(5);
  const Span span{.slot = 0, .first_position = 0, .count = 5};
  FromTime never{.time = 1000};
  (void)model.decoder().forward(tokens, {&span, 1}, caches, {.cancelled = never.question()}, workspace);
  EXPECT_EQ(never.asked, kLayers);
}

// The other ranks would wait for the one that leaves.
TEST(CancelledCall, IsRefusedOverRanks) {
  const TempFolder folder;
  const Checkpoint checkpoint = Checkpoint::open(folder.write("model.gguf", kLlama.gguf().build()));
  run_ranks(2, [&](const std::shared_ptr<Communicator>& world) {
    const Model model = Model::load(checkpoint, Threads(1), Ranks(world, {.tp_degree = 2}));
    Workspace workspace(1);
    std::vector<KvCache> caches = model.make_caches({.slots = 1, .capacity = 64});
    const int32_t token = 5;
    const Span span{.slot = 0, .first_position = 0, .count = 1};
    const auto run = [&] {
      (void)model.forward({&token, 1}, {&span, 1}, caches, {.cancelled = [] { return false; }}, workspace);
    };
    EXPECT_ERROR(run(), "model: cancelled is given over 2 ranks, expected 1");
  });
}

// Requests at an engine that is interrupted from time to time: prompts of many steps, and tokens one by one.
struct Interrupted {
  explicit Interrupted(const TestModel& model, std::function<bool()> interrupted)
      : workspace(1),
        engine(model.decoder(),
               {.tokenizer = &model.tokenizer(), .max_sequences = 2, .interrupted = std::move(interrupted)},
               workspace) {
    for (int32_t i = 0; i < 3; ++i) {
      requests.push_back({.prompt = text(40 + 70 * i, 1 + i), .max_tokens = 12});
      streamed.emplace_back();
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      GenerationRequest request = requests[i];
      request.on_token = [this, i](const GeneratedToken& token) {
        streamed[i].push_back(token.token);
        return true;
      };
      engine.submit(std::move(request), [this, i](GeneratedText result) {
        EXPECT_EQ(result.tokens, streamed[i]);
        results.emplace(i, std::move(result));
      });
    }
  }

  void expect_every_text(const TestModel& model) const {
    ASSERT_EQ(results.size(), requests.size());
    for (const auto& [i, result] : results) {
      const GeneratedText alone = model.text_of(requests[i]);
      EXPECT_EQ(result.error, "");
      EXPECT_EQ(result.finish, alone.finish);
      EXPECT_EQ(result.tokens, alone.tokens);
    }
  }

  Workspace workspace;
  std::vector<GenerationRequest> requests;
  std::vector<std::vector<int32_t>> streamed;
  std::map<size_t, GeneratedText> results;
  Engine engine;
};

TEST(InterruptedEngine, LeavesTheStepBetweenLayersAndLosesNothing) {
  const TestModel model(kLlama);
  int64_t asked = 0;
  int64_t left = 0;
  // Every so often a step is left, each time before another layer.
  const auto interrupted = [&] {
    const bool leaves = ++asked % 23 == 0;
    left += leaves ? 1 : 0;
    return leaves;
  };
  Interrupted scene(model, interrupted);
  int64_t steps = 0;
  while (scene.engine.step()) ASSERT_LT(++steps, 1000);
  EXPECT_GT(left, 5);
  scene.expect_every_text(model);
}

TEST(InterruptedEngine, AsksBeforeEveryLayerAndNoMoreOnceToldToLeave) {
  const TestModel model(kLlama);
  FromTime from{.time = 2};
  Interrupted scene(model, from.question());
  EXPECT_TRUE(scene.engine.step());
  EXPECT_EQ(from.asked, 3);
  EXPECT_EQ(scene.engine.open_requests(), 3);
  EXPECT_EQ(scene.engine.stats().generated_tokens, 0);
  EXPECT_EQ(scene.engine.stats().preemptions, 0);
}

TEST(InterruptedEngine, RunReturnsWithOpenRequestsAndGoesOnLater) {
  const TestModel model(kLlama);
  bool told = true;
  Interrupted scene(model, [&] { return told; });
  scene.engine.run();
  EXPECT_EQ(scene.engine.open_requests(), 3);
  told = false;
  scene.engine.run();
  EXPECT_EQ(scene.engine.open_requests(), 0);
  scene.expect_every_text(model);
}

TEST(InterruptedEngine, ServeReturnsWithOpenRequestsWhereEitherSaysSo) {
  const TestModel model(kLlama);
  std::stop_source stop;
  int64_t asked = 0;
  Interrupted scene(model, [&] {
    if (++asked == 3) stop.request_stop();  // between two layers of the first step
    return false;
  });
  scene.engine.serve(stop.get_token());
  EXPECT_EQ(scene.engine.open_requests(), 3);
  EXPECT_EQ(scene.engine.stats().generated_tokens, 0);
  bool told = true;
  Interrupted other(model, [&] { return told; });
  other.engine.serve(std::stop_source().get_token());
  EXPECT_EQ(other.engine.open_requests(), 3);
  told = false;
  other.engine.run();
  other.expect_every_text(model);
}

}  // namespace
}  // namespace regard::test
