// What public headers promise for several threads: const methods of layers, models and tokenizers, each thread with a
// workspace and caches of its own. ThreadSanitizer looks at the accesses; the bits show the rest.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <thread>

#include "regard/attend.h"
#include "regard/attention.h"
#include "support/numbers.h"
#include "support/test_layer.h"
#include "support/test_model.h"

namespace regard::test {
namespace {

using Ids = std::vector<int32_t>;
using Bytes = std::vector<std::byte>;

constexpr int kThreads = 4;
constexpr int kCalls = 6;

// Calls `call` several times on several threads at once, and expects what it gives by itself.
template <class Call>
void expect_same_on_all_threads(Call call) {
  const auto expected = call();
  std::array<int, kThreads> wrong{};
  {
    std::vector<std::jthread> threads;
    for (int& count : wrong)
      threads.emplace_back([&] {
        for (int i = 0; i < kCalls; ++i) count += call() == expected ? 0 : 1;
      });
  }
  for (const int count : wrong) EXPECT_EQ(count, 0);
}

void append(Bytes& all, ConstTensorView view) {
  const Bytes bytes = bytes_of(view);
  all.insert(all.end(), bytes.begin(), bytes.end());
}

AttentionConfig layer_config() {
  AttentionConfig config{.hidden_size = 24, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6};
  config.rotary_emb = RotaryConfig{};
  config.rms_norm_eps = 1e-5;
  config.learned_sinks_size = 1;
  return config;
}

TEST(SeveralThreads, MayCallOneLayer) {
  const Attention attention = random_layer(layer_config(), 1).load(2);
  const Tensor hidden = Numbers(2).tensor({40, 24});
  const Tensor gain = Numbers(3).tensor({24});
  expect_same_on_all_threads([&] {
    Workspace workspace(2);
    KvCache cache = attention.make_cache(KvStorage::paged, {.slots = 1, .capacity = 64});
    AttentionInput input;
    input.rmsnorm = gain;
    input.cache = &cache;
    input.workspace = &workspace;
    input.present_key_value = input.angles = input.lse = true;
    Bytes all;
    for (const Span& span : {Span{.count = 39}, Span{.first_position = 39, .count = 1}}) {
      const Tensor rows = convert(hidden.view().slice(0, span.first_position, span.count), DType::f32);
      input.hidden_states = rows;
      input.spans = {&span, 1};
      const auto output = attention.forward(input);
      append(all, output.hidden_states);
      append(all, output.present_key_value.key);
      append(all, output.cos_cache.values);
      append(all, output.lse);
    }
    return all;
  });
}

TEST(SeveralThreads, MayRunOneModel) {
  const TestModel model;
  const Ids tokens = {5, 6, 7, 8, 9, 100, 101};
  expect_same_on_all_threads([&] {
    Workspace workspace(2);
    auto caches = model.decoder().make_caches({.slots = 1, .capacity = 16});
    const Span span{.count = std::ssize(tokens)};
    Bytes all;
    append(all, model.decoder().forward(tokens, {&span, 1}, caches, {.logits = Model::Logits::all}, workspace));
    model.decoder().truncate(caches, 0, 3);
    return all;
  });
}

TEST(SeveralThreads, MayGenerateWithOneModel) {
  const TestModel model;
  const GenerationRequest request{.prompt = {5, 6, 7}, .max_tokens = 12, .log_probabilities = 2};
  expect_same_on_all_threads([&] {
    const auto text = model.text_of(request);
    return std::pair(text.tokens, text.text);
  });
}

TEST(SeveralThreads, MayAttendToOneCache) {
  const KvSpec spec{.num_key_value_heads = 2, .head_dim = 8};
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = 64, .dtype = DType::i8}, spec);
  const Tensor keys = Numbers(4).tensor({50, 2, 8});
  cache.append({.count = 50}, keys, keys);
  const Tensor queries = Numbers(5).tensor({10, 4, 8});
  const Span span{.first_position = 40, .count = 10};
  expect_same_on_all_threads([&] {
    Workspace workspace(2);
    Tensor output(DType::f32, {10, 4, 8});
    attend({.queries = queries,
            .spans = {&span, 1},
            .cache = &cache,
            .mask = {},
            .output = output,
            .workspace = &workspace});
    return bytes_of(output);
  });
}

TEST(SeveralThreads, MayAttendToOneBatch) {
  const Tensor queries = Numbers(6).tensor({2, 4, 10, 8});
  const Tensor keys = Numbers(7).tensor({2, 2, 30, 8});
  expect_same_on_all_threads([&] {
    Workspace workspace(2);
    Tensor output(DType::f32, {2, 4, 10, 8});
    attend({.queries = queries, .keys = keys, .values = keys, .mask = {}, .output = output, .workspace = &workspace});
    return bytes_of(output);
  });
}

TEST(SeveralThreads, MayUseOneTokenizer) {
  const TestModel model;
  expect_same_on_all_threads([&] {
    const Ids tokens = model.tokenizer().encode("the inn and the hen");
    return std::pair(tokens, model.tokenizer().decode(tokens));
  });
}

// Two calls at the same time on one team: the second one's caller works alone.
TEST(SeveralThreads, MayShareATeamOfThreads) {
  const Threads team(3);
  expect_same_on_all_threads([&] {
    std::vector<int> done(500);
    team.for_each(500, [&](int64_t task, int) { done[static_cast<size_t>(task)] = static_cast<int>(task); });
    return done;
  });
}

}  // namespace
}  // namespace regard::test
