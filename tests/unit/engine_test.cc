#include "regard/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <thread>

#include "support/expect_error.h"
#include "support/property.h"
#include "support/random_requests.h"
#include "support/test_model.h"
#include "text/utf8.h"

namespace regard::test {
namespace {

using Ids = std::vector<int32_t>;

constexpr int64_t kPageSize = 32;

// An engine with its memory and its threads.
struct Server {
  explicit Server(const TestModel& model, int64_t max_sequences = 4, int64_t pages = 1024, int threads = 1)
      : workspace(threads),
        engine(model.decoder(),
               {.tokenizer = &model.tokenizer(),
                .max_sequences = max_sequences,
                .cache_bytes = pages * kPageSize * bytes_per_token(model)},
               workspace) {}

  static int64_t bytes_per_token(const TestModel& model) {
    int64_t bytes = 0;
    for (const KvCache& layer : model.decoder().make_caches({.slots = 1, .capacity = 1}))
      bytes += layer.bytes_per_token();
    return bytes;
  }
  // Runs one request, and all that are open.
  GeneratedText finish(GenerationRequest request) {
    std::optional<GeneratedText> result;
    engine.submit(std::move(request), [&](GeneratedText text) { result = std::move(text); });
    engine.run();
    return result.value();
  }

  Workspace workspace;
  Engine engine;
};

// A request, what its callbacks were told, and what is expected.
struct Served {
  GenerationRequest request;
  GeneratedText alone;        // the whole text
  int64_t cancel_after = -1;  // tokens, by a callback that returns false; -1: never
  bool cancel = false;        // by number, at any time
  Ids streamed;
  std::string streamed_text;
  std::optional<GeneratedText> result;
  int finished = 0;

  void stream_from(Engine& engine, std::atomic<int64_t>& open) {
    request.on_token = [this](const GeneratedToken& token) {
      streamed.push_back(token.token);
      streamed_text += token.text;
      return std::ssize(streamed) != cancel_after;
    };
    const int64_t number = engine.submit(request, [this, &open](GeneratedText text) {
      result = std::move(text);
      ++finished;
      --open;
    });
    if (cancel) engine.cancel(number);
  }
};

// "", or what is wrong.
std::string wrong_with(const Served& served) {
  if (served.finished != 1) return "it finished " + std::to_string(served.finished) + " times";
  const GeneratedText& result = *served.result;
  if (result.finish == FinishReason::error) return "an error: " + result.error;
  if (served.streamed != result.tokens) return "other tokens were streamed";
  if (result.finish != FinishReason::cancelled) {
    if (result.tokens != served.alone.tokens) return "other tokens";
    if (result.text != served.alone.text) return "another text";
    if (result.finish != served.alone.finish) return "another reason to finish";
    return served.streamed_text == result.text ? "" : "another text was streamed";
  }
  if (!served.cancel && std::ssize(result.tokens) != served.cancel_after) return "cancelled at the wrong place";
  const bool begins = std::ranges::equal(result.tokens, std::span(served.alone.tokens).first(result.tokens.size()));
  return begins && served.alone.text.starts_with(served.streamed_text) ? "" : "another beginning";
}

Served random_request(const TestModel& model, Random& random, const Ids& common) {
  Served served;
  served.request = random_request(random, common, 40);
  served.alone = model.text_of(served.request);
  served.cancel = random.integer(0, 9) == 0;
  if (random.integer(0, 9) == 0) served.cancel_after = random.integer(1, std::ssize(served.alone.tokens));
  return served;
}

// Three clients submit and cancel while a fourth thread serves; memory is short enough for preemptions.
TEST(Engine, ManyThreadsSubmitCancelAndStreamAndEveryTextIsTheOneThatGenerateGives) {
  const TestModel model;
  Random random(1);
  const Ids common = random_tokens(random, 100);
  std::vector<Served> requests;
  for (int i = 0; i < scaled_cases(600); ++i) requests.push_back(random_request(model, random, common));
  Server server(model, 8, 8, 2);
  std::atomic<int64_t> open = std::ssize(requests);
  {
    const std::jthread loop([&](const std::stop_token& stop) { server.engine.serve(stop); });
    constexpr size_t kClients = 3;
    std::vector<std::jthread> clients;
    for (size_t client = 0; client < kClients; ++client)
      clients.emplace_back([&, client] {
        for (size_t i = client; i < requests.size(); i += kClients) {
          requests[i].stream_from(server.engine, open);
          (void)server.engine.stats();
        }
      });
    clients.clear();
    while (open > 0) std::this_thread::yield();
  }
  EXPECT_EQ(server.engine.open_requests(), 0);
  EXPECT_GT(server.engine.stats().preemptions, 0);
  int64_t cancelled = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(wrong_with(requests[i]), "") << i;
    cancelled += requests[i].result->finish == FinishReason::cancelled ? 1 : 0;
  }
  EXPECT_GT(cancelled, 0);
}

TEST(Engine, CancelEndsWhatRunsAndWhatWaits) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Server server(model, 1);
  std::vector<std::optional<GeneratedText>> texts(3);
  std::vector<int64_t> numbers;
  for (auto& text : texts)
    numbers.push_back(
        server.engine.submit({.prompt = {5, 6, 7}, .max_tokens = 10}, [&](GeneratedText t) { text = t; }));
  EXPECT_EQ(numbers, (std::vector<int64_t>{0, 1, 2}));
  server.engine.step();
  server.engine.step();
  EXPECT_TRUE(server.engine.cancel(0));
  EXPECT_TRUE(server.engine.cancel(1));
  EXPECT_TRUE(server.engine.cancel(1)) << "it is still open";
  EXPECT_FALSE(server.engine.cancel(3)) << "there is none";
  server.engine.run();
  EXPECT_FALSE(server.engine.cancel(2)) << "it has finished";
  EXPECT_EQ(texts[0]->finish, FinishReason::cancelled);
  EXPECT_EQ(texts[0]->tokens.size(), 2U);
  EXPECT_EQ(texts[1]->finish, FinishReason::cancelled);
  EXPECT_TRUE(texts[1]->tokens.empty());
  EXPECT_EQ(texts[2]->finish, FinishReason::length);
  EXPECT_EQ(texts[2]->tokens.size(), 10U);
  EXPECT_EQ(server.engine.stats().open_requests, 0);
}

// Log probabilities of the whole text in one call of the model, whose logits have the same bits.
TEST(Engine, LogProbabilitiesAreThoseOfTheSoftmaxOfTheLogits) {
  const TestModel model;
  Server server(model);
  const Ids prompt = {9, 30, 77};
  const auto text = server.finish(
      {.prompt = prompt, .max_tokens = 12, .sampler = {.temperature = 2.0F, .top_k = 50}, .log_probabilities = 3});
  ASSERT_EQ(text.log_probabilities.size(), text.tokens.size());
  Ids all = prompt;
  all.insert(all.end(), text.tokens.begin(), text.tokens.end());
  auto caches = model.decoder().make_caches({.slots = 1, .capacity = std::ssize(all)});
  const Span span{.count = std::ssize(all)};
  Workspace workspace(1);
  const auto logits = model.decoder().forward(all, {&span, 1}, caches, {.logits = Model::Logits::all}, workspace);
  for (size_t i = 0; i < text.tokens.size(); ++i) {
    const auto row = logits[static_cast<int64_t>(prompt.size() + i) - 1].elements<float>();
    const auto expected = [&](int32_t token) {
      double sum = 0;
      for (const float other : row)
        sum += std::exp(static_cast<double>(other) - static_cast<double>(row[static_cast<size_t>(token)]));
      return -std::log(sum);
    };
    EXPECT_NEAR(text.log_probabilities[i].drawn, expected(text.tokens[i]), 1e-12);
    Ids ranked(row.size());
    for (size_t id = 0; id < row.size(); ++id) ranked[id] = static_cast<int32_t>(id);
    std::ranges::stable_sort(ranked, std::greater(), [&](int32_t id) { return row[static_cast<size_t>(id)]; });
    ASSERT_EQ(text.log_probabilities[i].top.size(), 3U);
    for (size_t rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(text.log_probabilities[i].top[rank].token, ranked[rank]);
      EXPECT_NEAR(text.log_probabilities[i].top[rank].log_probability, expected(ranked[rank]), 1e-12);
    }
  }
  EXPECT_TRUE(server.finish({.prompt = prompt, .max_tokens = 2}).log_probabilities.empty()) << "not asked for";
  const auto drawn_alone = server.finish({.prompt = prompt, .max_tokens = 2, .log_probabilities = 0});
  EXPECT_EQ(drawn_alone.log_probabilities.size(), 2U);
  EXPECT_TRUE(drawn_alone.log_probabilities[0].top.empty());
}

TEST(Engine, EachTokenComesWithItsLogProbabilities) {
  const TestModel model;
  Server server(model);
  std::vector<double> streamed;
  const auto text = server.finish(
      {.prompt = {9, 30, 77}, .max_tokens = 5, .log_probabilities = 0, .on_token = [&](const GeneratedToken& token) {
         streamed.push_back(token.log_probabilities->drawn);
         return true;
       }});
  std::vector<double> expected;
  for (const auto& token : text.log_probabilities) expected.push_back(token.drawn);
  EXPECT_EQ(streamed, expected);
}

TEST(Engine, AStopTokenEndsTheTextAndBelongsToIt) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Server server(model);
  const GenerationRequest request{.prompt = {5, 6, 7}, .max_tokens = 40, .sampler = {.temperature = 3.0F}};
  const Ids whole = server.finish(request).tokens;
  GenerationRequest stopped = request;
  stopped.stop_tokens = {whole[30], whole[11]};
  const auto first = std::ranges::find_first_of(whole, stopped.stop_tokens);
  const auto text = server.finish(stopped);
  EXPECT_EQ(text.tokens, Ids(whole.begin(), first + 1));
  EXPECT_EQ(text.finish, FinishReason::stop);
}

// Against texts that are decoded anew after each token. The pieces that are streamed never show a part of a stop text.
TEST(Engine, TextsEndBeforeTheFirstStopText) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Server server(model);
  const auto decoded = [&](const Ids& tokens, int64_t count) {
    Ids visible;
    for (const int32_t token : std::span(tokens).first(static_cast<size_t>(count)))
      if (!model.tokenizer().is_special(token)) visible.push_back(token);
    return model.tokenizer().decode(visible);
  };
  check_property(100, [&] {
    Random random(*rc::gen::arbitrary<uint64_t>());
    GenerationRequest request{.prompt = random_tokens(random, 3), .max_tokens = 30};
    request.sampler = {.temperature = 4.0F, .seed = static_cast<uint64_t>(random.integer(0, 1000))};
    const auto whole = server.finish(request);
    RC_ASSERT(whole.text == decoded(whole.tokens, std::ssize(whole.tokens)));
    for (int i = 0; i < 2; ++i) {
      const int64_t first = random.integer(0, std::ssize(whole.text) - 1);
      request.stop_texts.push_back(
          whole.text.substr(static_cast<size_t>(first), static_cast<size_t>(random.integer(1, 6))));
    }
    request.stop_texts.emplace_back("a text that does not come");
    // The token that completes a stop text, and where the first of them begins.
    int64_t count = 0;
    size_t end = std::string::npos;
    while (end == std::string::npos && count < std::ssize(whole.tokens)) {
      const std::string text = decoded(whole.tokens, ++count);
      for (const std::string& stop : request.stop_texts) end = std::min(end, text.find(stop));
    }
    std::string streamed;
    request.on_token = [&](const GeneratedToken& token) {
      streamed += token.text;
      return true;
    };
    const auto text = server.finish(request);
    RC_ASSERT(text.finish == FinishReason::stop);
    RC_ASSERT(text.tokens == Ids(whole.tokens.begin(), whole.tokens.begin() + count));
    RC_ASSERT(text.text == whole.text.substr(0, end));
    RC_ASSERT(streamed == text.text);
  });
}

// The places inside characters of several bytes; bytes that are part of none are as random tokens make them.
std::vector<size_t> inside_characters(const std::string& text) {
  std::vector<size_t> places;
  for (size_t at = 0; at < text.size(); ++at)
    for (size_t length = 2; length <= 4 && at + length <= text.size(); ++length) {
      const std::string_view bytes = std::string_view(text).substr(at, length);
      if (static_cast<unsigned char>(bytes[0]) < 0xC0 || find_invalid_utf8(bytes) != std::string::npos) continue;
      for (size_t i = 1; i < length; ++i)
        if ((static_cast<unsigned char>(bytes[i]) & 0xC0) == 0x80) places.push_back(at + i);
    }
  return places;
}

TEST(Engine, TextIsStreamedInWholeCharacters) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Server server(model, 1);
  size_t characters = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    size_t streamed = 0;
    std::vector<size_t> ends;
    const auto on_token = [&](const GeneratedToken& token) {
      ends.push_back(streamed += token.text.size());
      return true;
    };
    const auto text = server.finish(
        {.prompt = {5, 6, 7}, .max_tokens = 200, .sampler = {.temperature = 8.0F, .seed = seed}, .on_token = on_token});
    for (const size_t place : inside_characters(text.text)) {
      EXPECT_EQ(std::ranges::count(ends, place), 0) << seed;
      ++characters;
    }
  }
  EXPECT_GT(characters, 50U) << "characters of several bytes are met";
}

TEST(Engine, WithoutATokenizerThereAreTokensAlone) {
  const TestModel model;
  Workspace workspace(1);
  Engine engine(model.decoder(), {.end_tokens = model.end_tokens(), .max_sequences = 1}, workspace);
  GeneratedText text;
  engine.submit({.prompt = {5, 6, 7}, .max_tokens = 10}, [&](GeneratedText t) { text = std::move(t); });
  engine.run();
  EXPECT_EQ(text.tokens, model.text_of({.prompt = {5, 6, 7}, .max_tokens = 10}).tokens);
  EXPECT_EQ(text.text, "");
  EXPECT_ERROR(engine.submit({.prompt = {5}, .stop_texts = {"x"}}, {}), "1 stop texts are given, but no tokenizer");
}

TEST(Engine, WhatOnTokenThrowsIsTheErrorOfItsTextAlone) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Server server(model);
  std::vector<GeneratedText> texts(2);
  server.engine.submit({.prompt = {5, 6, 7},
                        .max_tokens = 9,
                        .on_token = [](const GeneratedToken&) -> bool { throw std::runtime_error("the client left"); }},
                       [&](GeneratedText text) { texts[0] = std::move(text); });
  server.engine.submit({.prompt = {8, 9}, .max_tokens = 9}, [&](GeneratedText text) { texts[1] = std::move(text); });
  server.engine.run();
  EXPECT_EQ(texts[0].finish, FinishReason::error);
  EXPECT_EQ(texts[0].error, "the client left");
  EXPECT_TRUE(texts[0].tokens.empty());
  EXPECT_EQ(texts[1].tokens, model.text_of({.prompt = {8, 9}, .max_tokens = 9}).tokens);
}

TEST(Engine, WhatOnFinishThrowsLeavesStepAndTheOthersAreCalledLater) {
  const TestModel model;
  Server server(model);
  int finished = 0;
  for (int i = 0; i < 3; ++i)
    server.engine.submit({.prompt = {5, 6, 7}, .max_tokens = 1}, [&](const GeneratedText&) {
      if (++finished == 1) throw std::runtime_error("the disk is full");
    });
  EXPECT_THROW(server.engine.step(), std::runtime_error);
  EXPECT_EQ(finished, 1);
  EXPECT_EQ(server.engine.open_requests(), 2);
  server.engine.run();
  EXPECT_EQ(finished, 3);
}

TEST(Engine, CallbacksMaySubmitAndCancelButNotStep) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Server server(model);
  GeneratedText second;
  int64_t other = 0;
  GeneratedText cancelled;
  server.engine.submit({.prompt = {5, 6, 7}, .max_tokens = 3}, [&](const GeneratedText&) {
    EXPECT_ERROR(server.engine.step(), "step is running already");
    EXPECT_TRUE(server.engine.cancel(other));
    server.engine.submit({.prompt = {8}, .max_tokens = 2}, [&](GeneratedText text) { second = std::move(text); });
  });
  other = server.engine.submit({.prompt = {5, 6, 7}, .max_tokens = 100},
                               [&](GeneratedText text) { cancelled = std::move(text); });
  server.engine.run();
  EXPECT_EQ(second.tokens.size(), 2U);
  EXPECT_EQ(cancelled.finish, FinishReason::cancelled);
  EXPECT_EQ(cancelled.tokens.size(), 3U);
}

TEST(Engine, ServeStopsWhenAskedAndLeavesOpenRequests) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Server server(model);
  std::stop_source stop;
  int tokens = 0;
  server.engine.submit({.prompt = {5, 6, 7},
                        .max_tokens = 50,
                        .on_token =
                            [&](const GeneratedToken&) {
                              if (++tokens == 4) stop.request_stop();
                              return true;
                            }},
                       {});
  server.engine.serve(stop.get_token());
  EXPECT_EQ(tokens, 4);
  EXPECT_EQ(server.engine.open_requests(), 1);
  server.engine.run();
  EXPECT_EQ(tokens, 50);
}

TEST(Engine, OptionsOutOfRangeAreRefused) {
  const TestModel model;
  Workspace workspace(1);
  EXPECT_ERROR(Engine(model.decoder(), {.max_sequences = 0}, workspace), "max_sequences is 0, expected 1 or more");
  EXPECT_ERROR(Engine(model.decoder(), {.cache_bytes = -1}, workspace), "cache_bytes is -1");
  EXPECT_ERROR(Engine(model.decoder(), {.cache_bytes = 1000}, workspace), "the cache's memory is 1000 bytes");
}

}  // namespace
}  // namespace regard::test
