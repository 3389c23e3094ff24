#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "regard/model.h"
#include "regard/model_cache.h"
#include "regard/sampler.h"
#include "regard/tokenizer.h"
#include "regard/workspace.h"

namespace regard {

// Continues many prompts at once: a step is one call of the model with the next token of each running sequence and
// pieces of prompts. What a request gives is what `generate` gives for it alone, bit for bit, whatever else runs.
//
// Sequences start in the order of their requests, as slots and memory become free. Where memory ends, the youngest
// gives its own back and computes its tokens again later, so that the oldest always gets on.
class Scheduler {
 public:
  struct Request {
    std::vector<int32_t> prompt;
    int64_t max_tokens = 128;
    SamplerConfig sampler;
    uint64_t salt = 0;  // requests with different ones share no prefixes
    // Called with each token as it comes, by the thread that calls `step`; false ends the text (Finish::stop).
    std::function<bool(int32_t)> on_token = [](int32_t) { return true; };
  };
  enum class Finish : uint8_t { stop, length, error };
  struct Result {
    int64_t request = 0;          // as `submit` numbered it
    std::vector<int32_t> tokens;  // the end token included; none after an error
    Finish finish = Finish::stop;
    std::string error;
  };
  struct Stats {
    int64_t prompt_tokens = 0;  // of requests that have started
    int64_t shared_tokens = 0;  // of those, found in the prefix cache
    int64_t generated_tokens = 0;
    int64_t preemptions = 0;
    int64_t most_pages_in_use = 0;  // of the cache's fullest layer, prefixes included
  };

  // Draws ids that the tokenizer has a token for. The cache is empty, paged, and has room for the model's context in
  // each slot; the others outlive the scheduler. Throws Error for a smaller cache.
  Scheduler(const Model& model, const Tokenizer& tokenizer, ModelCache cache, Workspace& workspace);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Returns the request's number, from 0 on. Throws Error for what `generate` refuses, and for a prompt that the
  // cache's memory can't hold.
  int64_t submit(Request request);
  // How many tokens the request can come to: its max_tokens, or what the context leaves.
  [[nodiscard]] int64_t most_tokens(const Request& request) const;
  // Whether all requests are finished.
  [[nodiscard]] bool idle() const { return running_.empty() && waiting_.empty(); }
  // One call of the model, where there is something to do.
  void step();
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
  void run();
  void sample(ConstTensorView logits);
  void commit(Sequence& sequence);
  [[nodiscard]] bool end_if_finished(Sequence& sequence);
  void end(Sequence& sequence, Finish finish);

  const Model& model_;
  std::span<const int32_t> end_tokens_;
  int32_t vocabulary_ = 0;  // the tokenizer's
  ModelCache cache_;
  Workspace& workspace_;
  int64_t page_size_ = 0;
  int64_t memory_tokens_ = 0;  // that a sequence can hold which has all memory to itself

  // Both in the order of the requests; all that run are older than all that wait.
  Queue running_;
  Queue waiting_;
  bool memory_full_ = false;  // no sequence has ended since the next one did not fit
  int64_t submitted_ = 0;
  std::vector<Result> results_;
  Stats stats_;

  // The next call of the model: its tokens, span by span, and whose they are.
  std::vector<int32_t> tokens_;
  std::vector<Span> spans_;
  std::vector<Sequence*> planned_;
  std::vector<const Sequence*> prefilling_;
  std::vector<Span> growing_;  // those that need new pages
};

}  // namespace regard
