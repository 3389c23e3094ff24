#include "regard/engine.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "engine/scheduler.h"
#include "tensor/fail.h"

namespace regard {
namespace {

ModelCache make_cache(const Model& model, const EngineOptions& options) {
  require(options.max_sequences >= 1, "engine: max_sequences is {}, expected 1 or more", options.max_sequences);
  require(options.cache_bytes >= 0, "engine: cache_bytes is {}, expected 0 (as much as can be used) or more",
          options.cache_bytes);
  const KvCacheOptions cache{
      .slots = options.max_sequences, .capacity = model.spec().context_length, .dtype = options.cache_dtype};
  const int64_t bytes = options.cache_bytes > 0 ? options.cache_bytes : std::numeric_limits<int64_t>::max();
  return {model.make_paged_caches(cache, bytes), true};
}

}  // namespace

struct Engine::State {
  State(const Model& model, const EngineOptions& options, Workspace& workspace)
      : ranks(model.ranks()),
        scheduler(model, TextEnds::of(options.tokenizer, options.end_tokens), make_cache(model, options), workspace),
        interrupted(options.interrupted) {
    stats.pages = scheduler.cache_stats().pages;
  }

  // The one thread that steps: from construction to destruction.
  class Stepping {
   public:
    explicit Stepping(State& state) : state_(state) {
      const std::scoped_lock lock(state_.mutex);
      require(!std::exchange(state_.stepping, true), "engine: step is running already, expected one thread at a time");
    }
    Stepping(const Stepping&) = delete;
    Stepping& operator=(const Stepping&) = delete;
    ~Stepping() {
      const std::scoped_lock lock(state_.mutex);
      state_.stepping = false;
    }

   private:
    State& state_;
  };

  [[nodiscard]] bool is_interrupted() const { return interrupted && interrupted(); }

  // A step of all ranks together; false, and nothing has changed, where the leading one stops instead. `leave` is asked
  // between layers.
  bool step(bool stop, const std::function<bool()>& leave) {
    const Stepping alone(*this);
    StepInbox taken = stop ? StepInbox{.stop = true} : take_inbox();
    ranks.share(taken);
    if (taken.stop) return false;
    for (auto& [number, request] : taken.requests) {
      note_open(number);
      scheduler.submit(number, std::move(request));
    }
    for (const int64_t number : taken.cancelled) scheduler.cancel(number);
    scheduler.step(leave);
    publish_stats();
    deliver();
    return true;
  }

  StepInbox take_inbox() {
    const std::scoped_lock lock(mutex);
    return std::exchange(inbox, {});
  }

  // Ranks that did not submit a request count it as well.
  void note_open(int64_t number) {
    const std::scoped_lock lock(mutex);
    open.try_emplace(number);
  }

  // Until there is something to do. Other ranks wait for the leading one meanwhile, and take long silence for its end.
  void wait(const std::stop_token& stop) {
    constexpr std::chrono::seconds kSignOfLife{1};
    const auto has_work = [&] { return !open.empty(); };
    std::unique_lock lock(mutex);
    if (ranks.together())
      wakeup.wait_for(lock, stop, kSignOfLife, has_work);
    else
      wakeup.wait(lock, stop, has_work);
  }

  void publish_stats() {
    const Scheduler::Stats done = scheduler.stats();
    const std::scoped_lock lock(mutex);
    stats = {.prompt_tokens = done.prompt_tokens,
             .shared_tokens = done.shared_tokens,
             .generated_tokens = done.generated_tokens,
             .preemptions = done.preemptions,
             .pages = stats.pages,
             .most_pages_in_use = done.most_pages_in_use};
  }

  // Calls back for all texts that have ended; a callback that throws leaves the others for the next step.
  void deliver() {
    for (Scheduler::Result& result : scheduler.take_results()) finished.push_back(std::move(result));
    while (!finished.empty()) {
      Scheduler::Result result = std::move(finished.front());
      finished.pop_front();
      const OnFinish on_finish = close(result.request);
      if (on_finish) on_finish(std::move(result.text));
    }
  }

  OnFinish close(int64_t request) {
    const std::scoped_lock lock(mutex);
    return std::move(open.extract(request).mapped());
  }

  // Of the thread that steps, but for the scheduler's checks.
  RankSteps ranks;
  Scheduler scheduler;
  std::deque<Scheduler::Result> finished;  // not yet delivered
  std::function<bool()> interrupted;

  mutable std::mutex mutex;            // of all below
  std::condition_variable_any wakeup;  // a request has come
  StepInbox inbox;
  std::unordered_map<int64_t, OnFinish> open;  // by the numbers of requests
  int64_t submitted = 0;
  bool stepping = false;
  EngineStats stats;  // of the last step; open_requests is not kept here
};

Engine::Engine(const Model& model, const EngineOptions& options, Workspace& workspace)
    : state_(std::make_unique<State>(model, options, workspace)) {}

Engine::~Engine() = default;

int64_t Engine::submit(GenerationRequest request, OnFinish on_finish) {
  require(state_->ranks.leads(),
          "engine: a request is submitted on another rank than 0, expected 0, which hands it on");
  state_->scheduler.check(request);
  const std::scoped_lock lock(state_->mutex);
  const int64_t number = state_->submitted;
  state_->inbox.requests.emplace_back(number, std::move(request));
  state_->open.emplace(number, std::move(on_finish));
  ++state_->submitted;
  state_->wakeup.notify_one();
  return number;
}

bool Engine::cancel(int64_t request) {
  require(state_->ranks.leads(),
          "engine: a request is cancelled on another rank than 0, expected 0, which submits them");
  const std::scoped_lock lock(state_->mutex);
  if (!state_->open.contains(request)) return false;
  state_->inbox.cancelled.push_back(request);
  return true;
}

bool Engine::step() {
  state_->step(false, state_->interrupted);
  return open_requests() > 0;
}

void Engine::run() {
  while (state_->step(open_requests() == 0 || state_->is_interrupted(), state_->interrupted)) {
  }
}

void Engine::serve(const std::stop_token& stop) {
  const auto wait = [&] {
    if (state_->ranks.leads()) state_->wait(stop);
  };
  const auto stopped = [&] { return stop.stop_requested() || state_->is_interrupted(); };
  for (wait(); state_->step(stopped(), stopped);) wait();
}

int64_t Engine::most_tokens(const GenerationRequest& request) const { return state_->scheduler.most_tokens(request); }

int64_t Engine::open_requests() const {
  const std::scoped_lock lock(state_->mutex);
  return std::ssize(state_->open);
}

EngineStats Engine::stats() const {
  const std::scoped_lock lock(state_->mutex);
  EngineStats stats = state_->stats;
  stats.open_requests = std::ssize(state_->open);
  return stats;
}

}  // namespace regard
