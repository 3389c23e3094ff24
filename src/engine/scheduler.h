#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/continuation.h"
#include "engine/rank_steps.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "regard/model_cache.h"
#include "regard/workspace.h"

namespace regard {

// Which sequences run in a step, and who waits for memory. A step is one call of the model with the next token of each
// running sequence and chunks of prompts.
//
// Sequences start in the order of their requests, as slots and memory become free. Where memory ends, the youngest
// gives its own back and computes its tokens again later, so that the oldest always gets on. One thread at a time uses
// it; but `check` and `most_tokens` may be called at any time.
//
// Over ranks each has one, and all get the same calls: what runs follows from these and from tokens alone.
class Scheduler {
 public:
  struct Result {
    int64_t request = 0;
    GeneratedText text;
  };
  struct Stats {
    int64_t prompt_tokens = 0;  // of requests that have started
    int64_t shared_tokens = 0;  // of those, found in the prefix cache
    int64_t generated_tokens = 0;
    int64_t preemptions = 0;
    int64_t most_pages_in_use = 0;  // of the cache's fullest layer, prefixes included
  };

  // The cache is empty, paged, and has room for the model's context in each slot; model, workspace and the tokenizer of
  // `ends` outlive the scheduler. Throws Error for a smaller cache, and where a rank has only some of the
  // sequences, or of their tokens.
  Scheduler(const Model& model, TextEnds ends, ModelCache cache, Workspace& workspace);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Throws Error for what `generate` refuses, and for a prompt that the cache's memory can't hold.
  void check(const GenerationRequest& request) const;
  // Queues a request under a number that no other open one has. Throws Error as `check`.
  void submit(int64_t number, GenerationRequest request);
  // Ends a request that is not finished as cancelled; does nothing for other numbers.
  void cancel(int64_t number);
  // How many tokens the request can come to: its max_tokens, or what the context leaves.
  [[nodiscard]] int64_t most_tokens(const GenerationRequest& request) const;
  // Whether all requests are finished.
  [[nodiscard]] bool idle() const { return running_.empty() && waiting_.empty(); }
  // One call of the model, where there is something to do; passes the tokens that it gives to their requests'
  // on_token. What the model throws is the error of all texts in the call; over ranks it is thrown on: others may have
  // got through. On one rank `interrupted`, where there is one, is asked between layers: true leaves the call, and all
  // that run start anew in the next step.
  void step(const std::function<bool()>& interrupted = {});
  // What has finished since the last call, in no order.
  [[nodiscard]] std::vector<Result> take_results();

  [[nodiscard]] Stats stats() const { return stats_; }
  [[nodiscard]] ModelCache::Stats cache_stats() const { return cache_.stats(); }

 private:
  struct Sequence;
  using Queue = std::deque<std::unique_ptr<Sequence>>;

  [[nodiscard]] int64_t prompt_budget() const;
  void admit();
  void note_prefill(const Sequence& sequence);
  [[nodiscard]] bool computes_prefix_of(const Sequence& next) const;
  [[nodiscard]] bool start_next();
  void open(Sequence& sequence);
  void plan();
  void make_room();
  [[nodiscard]] std::span<const Span> spans_to_check() const;
  void free_memory();
  void send_back_youngest();
  void run(const std::function<bool()>& interrupted);
  void call_model(const std::function<bool()>& interrupted);
  void sample(ConstTensorView logits);
  void report();
  void commit(Sequence& sequence);
  [[nodiscard]] bool end_if_finished(Sequence& sequence);
  void end(Sequence& sequence);

  const Model& model_;
  TextEnds ends_;
  ModelCache cache_;
  Workspace& workspace_;
  RankSteps ranks_;
  int64_t page_size_ = 0;
  int64_t memory_tokens_ = 0;  // that a sequence can hold which has all memory to itself

  // Both in the order of the requests; all that run are older than all that wait.
  Queue running_;
  Queue waiting_;
  bool memory_full_ = false;  // no sequence has ended since the next one did not fit
  std::vector<Result> results_;
  Stats stats_;

  // The next call of the model: its tokens, span by span, and whose they are.
  std::vector<int32_t> tokens_;
  std::vector<Span> spans_;
  std::vector<Sequence*> planned_;
  std::vector<const Sequence*> prefilling_;
  std::vector<int32_t> drawn_;        // by span: the token that its sequence got, or -1
  std::vector<Continuation*> grown_;  // the texts of those that got one
  std::vector<Span> growing_;         // those that need new pages
};

}  // namespace regard
