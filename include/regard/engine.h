#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <vector>

#include "regard/generation.h"
#include "regard/model.h"
#include "regard/tokenizer.h"
#include "regard/workspace.h"

namespace regard {

struct EngineOptions {
  const Tokenizer* tokenizer = nullptr;  ///< Gives the texts of tokens, and its end tokens; none: tokens alone.
  std::vector<int32_t> end_tokens;       ///< Ids that end texts, beside those: without a tokenizer, end_tokens_of.
  int64_t max_sequences = 32;            ///< That run at a time; others wait for their turn.
  /// Bytes for cached keys and values, in pages that sequences share; 0: what max_sequences of the model's whole
  /// context take. Memory is touched as it fills.
  int64_t cache_bytes = 0;
  DType cache_dtype = DType::f32;
  /// Asked before each layer of a step and between steps, by the thread that steps. Where it returns true the step is
  /// left, and run and serve return: open requests stay, and begin their last step anew if the engine goes on. Over
  /// ranks a step that has begun ends first.
  std::function<bool()> interrupted = {};
};

/// What an engine has done so far.
struct EngineStats {
  int64_t open_requests = 0;     ///< That are not finished.
  int64_t prompt_tokens = 0;     ///< Of requests that have started.
  int64_t shared_tokens = 0;     ///< Of those, found in the prefix cache.
  int64_t generated_tokens = 0;  ///< Of all requests.
  int64_t preemptions = 0;       ///< Sequences that gave their memory back and start anew later.
  int64_t pages = 0;             ///< Of the cache's fullest layer.
  int64_t most_pages_in_use = 0;
};

/// Continues many prompts at once: a step is one call of the model with the next token of each running sequence and
/// chunks of prompts. What a request gives is what `generate` gives for it alone, bit for bit, whatever else runs.
///
/// Requests start in their order, as sequences end and memory becomes free; prompts that begin alike share pages. Where
/// memory ends, the youngest sequence gives its pages back and computes its tokens again later.
///
/// Over ranks each makes an engine with the same options and calls the same of step, run and serve. Rank 0 submits and
/// cancels, is called back, and says when run and serve end: with its last request, or its stop token. What a request
/// gives is then the same on all ranks; `Engine::step`'s errors may come on one rank alone, which has to end the
/// others.
///
/// Thread safety: submit, cancel, most_tokens, open_requests and stats may be called from any thread at any time, from
/// callbacks too. The engine has no thread of its own: one thread at a time calls step, run or serve, and there all
/// callbacks are called. Model, tokenizer and workspace outlive the engine; the workspace is the engine's alone while
/// it steps.
///
///     Engine engine(model, {.tokenizer = &tokenizer, .cache_bytes = int64_t{4} << 30}, workspace);
///     std::jthread loop([&](const std::stop_token& stop) { engine.serve(stop); });
///     const auto on_token = [](const GeneratedToken& token) { return send(token.text); };  // false: the client left
///     engine.submit({.prompt = ids, .on_token = on_token}, [](const GeneratedText& text) { log(text.finish); });
class Engine {
 public:
  /// Called once for each request, when its text has ended, whatever the reason.
  using OnFinish = std::function<void(GeneratedText text)>;

  /// Throws Error for max_sequences below 1, for a cache that is too small for max_sequences sequences (Model::
  /// make_paged_caches), and for ranks that divide sequences or their tokens in decode.
  Engine(const Model& model, const EngineOptions& options, Workspace& workspace);
  /// Drops the requests that are open, without calling them back. No thread is in step, run or serve.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Queues a request and returns its number, from 0 on. Throws Error, and queues nothing, for what the request may not
  /// be, and for a prompt that the cache's memory can't hold; what goes wrong later is its text's error, and no
  /// other's. Throws Error also on another rank than 0.
  int64_t submit(GenerationRequest request, OnFinish on_finish);
  /// Ends a request that waits or runs: its text finishes as cancelled in the next step, unless it finishes before.
  /// False, and nothing happens, where no open request has that number. Throws Error on another rank than 0.
  bool cancel(int64_t request);

  /// Runs one call of the model, if a request is open, and calls back. Returns whether requests are open afterwards.
  /// Throws Error if step is running already, and what an on_finish throws; the engine can go on then. Over ranks also
  /// what the model throws, and where ranks draw different tokens.
  bool step();
  /// Steps until no request is open, or EngineOptions::interrupted says so.
  void run();
  /// Steps until stop is requested, or EngineOptions::interrupted says so: the current step is left between layers, or
  /// over ranks ends, and open requests stay. Sleeps while no request is open.
  void serve(const std::stop_token& stop);

  /// How many tokens a request can come to: its max_tokens, or what the model's context leaves.
  [[nodiscard]] int64_t most_tokens(const GenerationRequest& request) const;
  [[nodiscard]] int64_t open_requests() const;
  [[nodiscard]] EngineStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace regard
