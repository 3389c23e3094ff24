#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <optional>

#include "support/expect_error.h"
#include "support/property.h"
#include "support/random_requests.h"
#include "support/test_model.h"

namespace regard::test {
namespace {

using Ids = std::vector<int32_t>;
using Request = GenerationRequest;
using Finish = FinishReason;

constexpr int64_t kPageSize = 32;

GgufBuilder windowed(int64_t window) {
  GgufBuilder file = TinyLlama{.context = 256}.gguf();
  file.add_u32("llama.attention.sliding_window", static_cast<uint32_t>(window));
  return file;
}

struct Machine {
  int64_t slots = 4;
  int64_t pages = 1024;  // and at most what all slots can fill
  int threads = 1;
  DType dtype = DType::f32;
};

// A scheduler with its memory and its threads.
class Server {
 public:
  Server(const TestModel& model, const Machine& machine)
      : workspace_(machine.threads),
        scheduler_(model.decoder(), TextEnds::of(&model.tokenizer(), {}), cache_of(model.decoder(), machine),
                   workspace_) {}

  [[nodiscard]] Scheduler& scheduler() { return scheduler_; }
  // Requests are numbered from 0 on.
  int64_t submit(const Request& request) {
    scheduler_.submit(submitted_, request);
    return submitted_++;
  }
  void step() {
    scheduler_.step();
    for (auto& result : scheduler_.take_results()) {
      order_.push_back(result.request);
      results_.emplace(result.request, std::move(result.text));
    }
    ++steps_;
  }
  // Everything that is still to do.
  void finish() {
    while (!scheduler_.idle() && steps_ < kPatience) step();
    EXPECT_TRUE(scheduler_.idle()) << "it does not end";
  }
  [[nodiscard]] const GeneratedText& result(int64_t request) const { return results_.at(request); }
  [[nodiscard]] const std::vector<int64_t>& order() const { return order_; }
  [[nodiscard]] int64_t steps() const { return steps_; }

 private:
  static constexpr int64_t kPatience = 20'000;

  static ModelCache cache_of(const Model& decoder, const Machine& machine) {
    const KvCacheOptions options{
        .slots = machine.slots, .capacity = decoder.spec().context_length, .dtype = machine.dtype};
    int64_t token_bytes = 0;
    for (const KvCache& layer : decoder.make_caches(options)) token_bytes += layer.bytes_per_token();
    return {decoder.make_paged_caches(options, machine.pages * kPageSize * token_bytes), true};
  }

  Workspace workspace_;
  Scheduler scheduler_;
  std::map<int64_t, GeneratedText> results_;
  std::vector<int64_t> order_;
  int64_t submitted_ = 0;
  int64_t steps_ = 0;
};

// Some begin alike, over whole pages and over parts of one.
std::vector<Request> random_requests(Random& random, int64_t count) {
  const Ids common = random_tokens(random, 150);
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; ++i) {
    Request request;
    if (random.integer(0, 1) == 1) request.prompt.assign(common.begin(), common.begin() + random.integer(1, 150));
    const Ids own = random_tokens(random, random.integer(request.prompt.empty() ? 1 : 0, 60));
    request.prompt.insert(request.prompt.end(), own.begin(), own.end());
    request.max_tokens = random.integer(1, 80);
    request.sampler = {.temperature = random.integer(0, 2) == 0 ? 0.0F : 3.0F,
                       .top_p = random.integer(0, 1) == 0 ? 1.0F : 0.9F,
                       .seed = static_cast<uint64_t>(random.integer(0, 9))};
    request.salt = static_cast<uint64_t>(random.integer(0, 1));
    requests.push_back(std::move(request));
  }
  return requests;
}

// What a request has to give: the tokens of `generate`, or nothing where those need more memory than there is.
std::optional<Ids> expected(const TestModel& model, const Request& request, const Machine& machine) {
  Ids tokens = model.text_of(request, machine.dtype).tokens;
  const auto cached = static_cast<int64_t>(request.prompt.size() + tokens.size()) - 1;
  if (cached > machine.pages * kPageSize) return std::nullopt;
  return tokens;
}

// "", or what is wrong with a request's result.
std::string wrong_with(const TestModel& model, const Request& request, const Machine& machine,
                       const GeneratedText& result) {
  const auto tokens = expected(model, request, machine);
  if (!tokens) return result.finish == Finish::error ? "" : "no error where there is not enough memory";
  if (result.finish == Finish::error) return "an error: " + result.error;
  if (result.tokens != *tokens) return "other tokens";
  const bool stopped = std::ranges::count(model.tokenizer().end_tokens(), result.tokens.back()) > 0;
  return (result.finish == Finish::stop) == stopped ? "" : "the wrong reason to finish";
}

// The promise: bits depend neither on the batch, nor on the order, the memory, the threads, or what others left behind.
TEST(Scheduler, EveryRequestGivesWhatGenerateGivesForItAlone) {
  const std::array models = {TestModel(), TestModel(windowed(48)), TestModel(windowed(7))};
  check_property(150, [&] {
    const auto kind = *rc::gen::inRange<size_t>(0, models.size());
    const TestModel& model = models[kind];
    Random random(*rc::gen::arbitrary<uint64_t>());
    Machine machine;
    machine.slots = *rc::gen::inRange<int64_t>(1, 7);
    // A layer with a window has to hold one whole prompt, which may come at once.
    machine.pages = *rc::gen::inRange<int64_t>(kind == 0 ? std::max<int64_t>(machine.slots, 4) : 8, 16);
    machine.threads = *rc::gen::inRange(1, 3);
    machine.dtype = *rc::gen::element(DType::f32, DType::bf16, DType::i8);
    const auto requests = random_requests(random, *rc::gen::inRange<int64_t>(1, 13));
    Server server(model, machine);
    std::vector<std::optional<int64_t>> numbers;
    for (const Request& request : requests) {
      // Some come while others server.
      for (int64_t i = random.integer(-20, 20); i > 0; --i) server.step();
      if (static_cast<int64_t>(request.prompt.size()) > machine.pages * kPageSize)
        numbers.emplace_back();
      else
        numbers.emplace_back(server.submit(request));
    }
    server.finish();
    for (size_t i = 0; i < requests.size(); ++i)
      if (numbers[i]) RC_ASSERT(wrong_with(model, requests[i], machine, server.result(*numbers[i])) == "");
  });
}

TEST(Scheduler, TheYoungestMakesRoomAndLosesNothing) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Random random(1);
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 6; ++i)
    requests.push_back({.prompt = random_tokens(random, 30),
                        .max_tokens = 90,
                        .sampler = {.temperature = 1.0F, .seed = i},
                        .salt = i});
  // One sequence comes to four pages: two thirds of what there is.
  const Machine machine{.slots = 6, .pages = 6};
  Server server(model, machine);
  for (const Request& request : requests) server.submit(request);
  server.finish();
  EXPECT_GT(server.scheduler().stats().preemptions, 0);
  EXPECT_EQ(server.scheduler().stats().most_pages_in_use, machine.pages);
  EXPECT_EQ(server.order(), (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
  for (int64_t i = 0; i < 6; ++i)
    EXPECT_EQ(wrong_with(model, requests[static_cast<size_t>(i)], machine, server.result(i)), "") << i;
}

// The second sequence makes room for the first, which takes nearly all memory; then it computes more tokens again than
// a step has.
TEST(Scheduler, EachTokenIsReportedOnceAndFalseEndsTheText) {
  const TestModel model(TinyLlama{.context = 1024, .has_end_token = false});
  Random random(2);
  Server server(model, {.slots = 2, .pages = 32});
  constexpr size_t kEnd = 300;
  std::array<Ids, 2> reported;
  std::array<Request, 2> requests = {Request{.prompt = random_tokens(random, 32), .max_tokens = 900, .sampler = {}},
                                     Request{.prompt = random_tokens(random, 550), .max_tokens = 400, .sampler = {}}};
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].on_token = [&tokens = reported[i], i](const GeneratedToken& token) {
      tokens.push_back(token.token);
      return i == 0 || tokens.size() < kEnd;
    };
    server.submit(requests[i]);
  }
  server.finish();
  EXPECT_GT(server.scheduler().stats().preemptions, 0);
  EXPECT_EQ(server.result(0).finish, Finish::length);
  EXPECT_EQ(server.result(1).finish, Finish::cancelled);
  for (Request& request : requests) request.on_token = {};
  EXPECT_EQ(server.result(0).tokens, model.text_of(requests[0]).tokens);
  Ids alone = model.text_of(requests[1]).tokens;
  alone.resize(kEnd);
  EXPECT_EQ(server.result(1).tokens, alone);
  for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(reported[i], server.result(static_cast<int64_t>(i)).tokens);
}

TEST(Scheduler, ASequenceWaitsForTheMemoryOfItsPromptButNotForAll) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Random random(8);
  // Two pages, one that becomes three, and two: together more than there are, until the first has ended.
  Server server(model, {.slots = 3, .pages = 4});
  server.submit({.prompt = random_tokens(random, 40), .max_tokens = 5});
  server.submit({.prompt = random_tokens(random, 20), .max_tokens = 60});
  server.submit({.prompt = random_tokens(random, 33), .max_tokens = 2});
  server.finish();
  EXPECT_EQ(server.order(), (std::vector<int64_t>{0, 2, 1}));
  EXPECT_EQ(server.scheduler().stats().preemptions, 0);
}

TEST(Scheduler, PromptsThatBeginAlikeAreComputedOnceForEachSalt) {
  const TestModel model;
  Random random(2);
  const Ids common = random_tokens(random, 3 * kPageSize);
  Server server(model, {.slots = 8});
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 8; ++i) {
    Request request{.prompt = common, .max_tokens = 4, .sampler = {}, .salt = i / 4};
    request.prompt.push_back(static_cast<int32_t>(i + 1));
    server.submit(request);
    requests.push_back(request);
  }
  server.finish();
  EXPECT_EQ(server.scheduler().stats().prompt_tokens, 8 * (3 * kPageSize + 1));
  EXPECT_EQ(server.scheduler().stats().shared_tokens, 6 * 3 * kPageSize);
  for (int64_t i = 0; i < 8; ++i)
    EXPECT_EQ(server.result(i).tokens, model.text_of(requests[static_cast<size_t>(i)]).tokens) << i;
}

// Wherever the common part ends, and however long the windows' tokens have gone on since.
TEST(Scheduler, PromptsThatBeginAlikeShareTheirWindowsToo) {
  const TestModel model(windowed(48));
  Random random(2);
  const Ids common = random_tokens(random, 4 * kPageSize);
  Server server(model, {.slots = 3});
  std::vector<Request> requests;
  for (int32_t i = 0; i < 6; ++i) {
    Request request{.prompt = common, .max_tokens = 4};
    for (int32_t own = 0; own < 100; ++own) request.prompt.push_back(1 + i);
    server.submit(request);
    requests.push_back(request);
  }
  server.finish();
  EXPECT_EQ(server.scheduler().stats().shared_tokens, 5 * 4 * kPageSize);
  for (int64_t i = 0; i < 6; ++i)
    EXPECT_EQ(server.result(i).tokens, model.text_of(requests[static_cast<size_t>(i)]).tokens) << i;
}

// Two equal sequences side by side compute the same pages twice, and the prefix cache keeps the first one's.
TEST(Scheduler, CopiesOfSharedPagesDoNotTakeTheMemoryOfTheLastOne) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  Random random(3);
  Request request{.prompt = random_tokens(random, 40), .max_tokens = 89};
  // Just what the longer one comes to; the shorter one's pages are needed as well.
  const Machine machine{.slots = 2, .pages = 4};
  Server server(model, machine);
  server.submit(request);
  request.max_tokens = 30;
  server.submit(request);
  request.max_tokens = 89;
  server.submit(request);
  server.finish();
  for (const int64_t number : {0, 2}) EXPECT_EQ(server.result(number).tokens, model.text_of(request).tokens) << number;
}

TEST(Scheduler, ATextLongerThanTheMemoryIsAnErrorAndTheOthersGoOn) {
  const TestModel model(TinyLlama{.context = 256, .has_end_token = false});
  const Machine machine{.slots = 3, .pages = 4};
  Random random(4);
  const auto request = [&](int64_t prompt, int64_t max_tokens) {
    return Request{.prompt = random_tokens(random, prompt), .max_tokens = max_tokens};
  };
  const std::vector<Request> requests = {request(20, 5), request(100, 30), request(64, 65), request(100, 29)};
  Server server(model, machine);
  for (const Request& each : requests) server.submit(each);
  server.finish();
  for (const int64_t fits : {0, 2, 3}) {
    EXPECT_EQ(server.result(fits).finish, Finish::length);
    EXPECT_EQ(server.result(fits).tokens, model.text_of(requests[static_cast<size_t>(fits)]).tokens) << fits;
  }
  EXPECT_EQ(server.result(1).finish, Finish::error);
  EXPECT_EQ(server.result(1).error, "the cache's memory holds 128 tokens, but the text goes on");
  EXPECT_TRUE(server.result(1).tokens.empty());
}

TEST(Scheduler, LongPromptsPassInPiecesWhileOthersGoOn) {
  const TestModel model(TinyLlama{.context = 2048, .has_end_token = false});
  Random random(5);
  const Request brief{.prompt = random_tokens(random, 10), .max_tokens = 4};
  const Request lengthy{.prompt = random_tokens(random, 1500), .max_tokens = 3};
  Server server(model, {});
  server.submit(brief);
  server.submit(lengthy);
  server.finish();
  EXPECT_EQ(server.order(), (std::vector<int64_t>{0, 1}));
  // 502, 511, then the rest; the third step draws the first of three tokens.
  EXPECT_EQ(server.steps(), 5);
  EXPECT_EQ(server.result(0).tokens, model.text_of(brief).tokens);
  EXPECT_EQ(server.result(1).tokens, model.text_of(lengthy).tokens);
}

TEST(Scheduler, PromptsGetOnBesideMoreSequencesThanAStepHasTokens) {
  const TestModel model(TinyLlama{.context = 64, .has_end_token = false});
  Random random(6);
  Server server(model, {.slots = 600, .pages = 2000, .threads = 2});
  std::vector<Request> requests;
  for (int i = 0; i < 590; ++i) requests.push_back({.prompt = random_tokens(random, 1 + i % 3), .max_tokens = 20});
  requests.push_back({.prompt = random_tokens(random, 10), .max_tokens = 2});
  for (const Request& request : requests) server.submit(request);
  server.finish();
  EXPECT_EQ(server.order().front(), 590);
  for (int64_t i = 0; i < 591; ++i)
    ASSERT_EQ(server.result(i).tokens, model.text_of(requests[static_cast<size_t>(i)]).tokens) << i;
}

TEST(Scheduler, RequestsStartInTheirOrder) {
  const TestModel model;
  Random random(7);
  Server server(model, {.slots = 1});
  for (int i = 0; i < 5; ++i) server.submit({.prompt = random_tokens(random, 20 - 4 * i), .max_tokens = 3});
  server.finish();
  EXPECT_EQ(server.order(), (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(Scheduler, LogitsThatAreNoNumbersEndTheSequenceWithAnError) {
  GgufBuilder gguf = TinyLlama().gguf();
  // The last norm overflows, and the head adds infinities of both signs.
  std::string& gain = gguf.tensor("output_norm.weight").data;
  const float huge = std::numeric_limits<float>::max();
  for (size_t at = 0; at < gain.size(); at += sizeof(huge)) std::memcpy(&gain[at], &huge, sizeof(huge));
  const TestModel model(gguf);
  Server server(model, {});
  server.submit({.prompt = {1, 2, 3}});
  server.submit({.prompt = {4, 5}, .max_tokens = 1});
  server.finish();
  for (const int64_t number : {0, 1}) {
    EXPECT_EQ(server.result(number).finish, Finish::error);
    EXPECT_EQ(server.result(number).error, "sampler: the logits hold NaN");
  }
}

TEST(Scheduler, WhatGenerateRefusesIsRefused) {
  const TestModel model;
  Server server(model, {.slots = 2, .pages = 3});
  EXPECT_ERROR(server.submit({.prompt = {}}), "the prompt has 0 tokens, expected 1 to 256");
  EXPECT_ERROR(server.submit({.prompt = Ids(257, 1)}), "the prompt has 257 tokens, expected 1 to 256");
  EXPECT_ERROR(server.submit({.prompt = Ids(97, 1)}), "97 tokens, but the cache's memory holds 96");
  EXPECT_ERROR(server.submit({.prompt = {1}, .max_tokens = 0}), "is 0, expected 1 or more");
  EXPECT_ERROR(server.submit({.prompt = {1, 267}}), "267, expected 0 to 266");
  EXPECT_ERROR(server.submit({.prompt = {1, -1}}), "-1, expected 0 to 266");
  EXPECT_ERROR(server.submit({.prompt = {1}, .sampler = {.temperature = -1}}), "temperature is -1");
  EXPECT_ERROR(server.submit({.prompt = {1}, .stop_texts = {"the", ""}}), "a stop text is empty");
  EXPECT_ERROR(server.submit({.prompt = {1}, .log_probabilities = -1}), "log_probabilities is -1, expected 0 or more");
  EXPECT_TRUE(server.scheduler().idle());
  Workspace workspace(1);
  ModelCache small(model.decoder().make_paged_caches({.slots = 1, .capacity = 255}, 1 << 20), true);
  EXPECT_ERROR(Scheduler(model.decoder(), {}, std::move(small), workspace), "capacity is 255");
}

}  // namespace
}  // namespace regard::test
