#include "engine/scheduler.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "engine/check_tokens.h"
#include "regard/block_table.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Tokens of a step: enough that the weights are read for many tokens at once, few enough that the running sequences do
// not wait long for a prompt. Where more sequences run than that, prompts still get on.
constexpr int64_t kTokensAStep = 512;
constexpr int64_t kLeastPromptTokens = 128;

int64_t count_of(std::span<const int32_t> tokens) { return static_cast<int64_t>(tokens.size()); }

// The tokens of one sequence that all the memory holds. Layers with windows or chunks hold any number.
int64_t tokens_in_memory(const Model& model, std::span<const KvCache> layers) {
  int64_t tokens = model.spec().context_length;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].first_seen(layers[i].capacity()) == 0)
      tokens = std::min(tokens, layers[i].block_tables().pages() * layers[i].block_tables().page_size());
  }
  return tokens;
}

}  // namespace

struct Scheduler::Sequence {
  int64_t request = 0;
  int64_t prompt_length = 0;
  std::vector<int32_t> tokens;  // the prompt, then what was generated
  uint64_t salt = 0;
  Continuation text;

  bool started = false;
  int64_t slot = -1;
  int64_t cached = 0;        // tokens that the cache holds
  int64_t committed = 0;     // of those, the ones that later sequences can share
  int64_t restarted_at = 0;  // tokens that it had when it last made room by starting anew

  // Tokens that have to run before the next one can be drawn: 1 while it decodes.
  [[nodiscard]] int64_t pending() const { return count_of(tokens) - cached; }
};

Scheduler::Scheduler(const Model& model, TextEnds ends, ModelCache cache, Workspace& workspace)
    : model_(model),
      ends_(std::move(ends)),
      cache_(std::move(cache)),
      workspace_(workspace),
      ranks_(model.ranks()),
      page_size_(cache_.layers().front().block_tables().page_size()),
      memory_tokens_(tokens_in_memory(model, cache_.layers())) {
  for (size_t i = 0; i < model.spec().layers.size(); ++i)
    require(
        !model.attention(static_cast<int64_t>(i)).shares_sequences(),
        "scheduler: ranks divide the sequences of decode (attention_dp_degree {}) or their tokens (flash decoding), "
        "expected ranks that have all of them",
        model.ranks().config().attention_dp_degree);
  require(cache_.capacity() >= model.spec().context_length,
          "scheduler: the cache's capacity is {} tokens, expected at least the model's context of {}",
          cache_.capacity(), model.spec().context_length);
}

Scheduler::~Scheduler() = default;

int64_t Scheduler::most_tokens(const GenerationRequest& request) const {
  return regard::most_tokens(request, count_of(request.prompt), model_.spec().context_length);
}

void Scheduler::check(const GenerationRequest& request) const {
  const int64_t length = count_of(request.prompt);
  check_length("the prompt", request.prompt.size(), 1, model_.spec());
  require(length <= memory_tokens_, "the prompt has {} tokens, but the cache's memory holds {}", length,
          memory_tokens_);
  check_settings(request, ends_);
  check_ids("token id of the prompt", request.prompt, model_.spec());
}

void Scheduler::submit(int64_t number, GenerationRequest request) {
  check(request);
  const int64_t most = most_tokens(request);
  std::vector<int32_t> tokens = std::exchange(request.prompt, {});
  const uint64_t salt = request.salt;
  waiting_.push_back(std::make_unique<Sequence>(Sequence{.request = number,
                                                         .prompt_length = count_of(tokens),
                                                         .tokens = std::move(tokens),
                                                         .salt = salt,
                                                         .text = Continuation(std::move(request), ends_, most)}));
}

void Scheduler::cancel(int64_t number) {
  for (Queue* queue : {&running_, &waiting_}) {
    const auto found = std::ranges::find(*queue, number, [](const auto& sequence) { return sequence->request; });
    if (found == queue->end()) continue;
    (*found)->text.end(FinishReason::cancelled);
    end(**found);
    queue->erase(found);
    return;
  }
}

std::vector<Scheduler::Result> Scheduler::take_results() { return std::exchange(results_, {}); }

void Scheduler::step(const std::function<bool()>& interrupted) {
  admit();
  make_room();
  if (spans_.empty()) return;
  try {
    run(interrupted);
  } catch (const Cancelled&) {
    // Some layers have a token more than others. What can be shared of it is found again.
    while (!running_.empty()) send_back_youngest();
  }
}

// Tokens of prompts in this step, beside one of each sequence that decodes.
int64_t Scheduler::prompt_budget() const {
  const int64_t decoding =
      std::ranges::count_if(running_, [](const auto& sequence) { return sequence->pending() == 1; });
  return std::max(kTokensAStep - decoding, kLeastPromptTokens);
}

// Starts waiting sequences while there are slots, tokens left in this step, and memory.
void Scheduler::admit() {
  int64_t budget = prompt_budget();
  prefilling_.clear();
  growing_.clear();
  for (const auto& sequence : running_) {
    if (sequence->pending() == 1) continue;
    budget -= sequence->pending();
    note_prefill(*sequence);
  }
  while (budget > 0 && !waiting_.empty() && cache_.free_slots() > 0 && (!memory_full_ || running_.empty()) &&
         !computes_prefix_of(*waiting_.front()) && start_next())
    budget -= running_.back()->pending();
}

void Scheduler::note_prefill(const Sequence& sequence) {
  prefilling_.push_back(&sequence);
  growing_.push_back({.slot = sequence.slot, .first_position = sequence.cached, .count = sequence.pending()});
}

// Whether a running sequence is about to compute pages that the next one can share: waiting for them is cheaper.
bool Scheduler::computes_prefix_of(const Sequence& next) const {
  return std::ranges::any_of(prefilling_, [&](const Sequence* sequence) {
    if (sequence->salt != next.salt) return false;
    const auto differs = std::ranges::mismatch(sequence->tokens, next.tokens).in2;
    const int64_t common = std::min<int64_t>(differs - next.tokens.begin(), count_of(next.tokens) - 1);
    return common / page_size_ > sequence->cached / page_size_;
  });
}

// False, and nothing has changed, where the memory does not hold all its tokens beside those that others still prefill.
bool Scheduler::start_next() {
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  Sequence& next = *running_.back();
  open(next);
  note_prefill(next);
  // One that is alone starts in any case: make_room sees to what it needs.
  if (running_.size() > 1 && !cache_.make_room(growing_)) {
    send_back_youngest();
    return false;
  }
  if (!std::exchange(next.started, true)) {
    stats_.prompt_tokens += next.prompt_length;
    stats_.shared_tokens += next.cached;
  }
  return true;
}

void Scheduler::open(Sequence& sequence) {
  const auto opened = cache_.open(sequence.tokens, sequence.salt);
  require(opened.has_value(), "scheduler: no slot of the cache is free");
  sequence.slot = opened->slot;
  sequence.cached = sequence.committed = opened->length;
}

// One token of each sequence that decodes, and of the others as much as the step still takes, the oldest first.
void Scheduler::plan() {
  int64_t budget = prompt_budget();
  spans_.clear();
  planned_.clear();
  growing_.clear();
  for (const auto& sequence : running_) {
    const int64_t pending = sequence->pending();
    const int64_t count = pending == 1 ? 1 : std::min(pending, budget);
    if (count <= 0) continue;
    if (pending > 1) budget -= count;
    spans_.push_back({.slot = sequence->slot, .first_position = sequence->cached, .count = count});
    planned_.push_back(sequence.get());
    // Only a new page takes memory: shared pages are whole, so that nobody writes to one.
    const int64_t room = (page_size_ - sequence->cached % page_size_) % page_size_;
    if (count > room) growing_.push_back(spans_.back());
  }
}

// Plans a step that the memory has room for.
void Scheduler::make_room() {
  plan();
  while (!growing_.empty() && !cache_.make_room(spans_to_check())) {
    free_memory();
    plan();
  }
}

// Those that take pages; or all where a step passes in pieces, which would be others if spans were left out.
std::span<const Span> Scheduler::spans_to_check() const {
  int64_t tokens = 0;
  for (const Span& span : spans_) tokens += span.count;
  return tokens > KvCache::kTokensAtOnce ? spans_ : growing_;
}

void Scheduler::free_memory() {
  if (running_.size() > 1) {
    ++stats_.preemptions;
    return send_back_youngest();
  }
  // It may hold copies of pages that the prefix cache has too, and keep those from being forgotten by what follows
  // them. Once it starts anew it shares them.
  Sequence& last = *running_.front();
  if (last.restarted_at < count_of(last.tokens)) {
    last.restarted_at = count_of(last.tokens);
    cache_.close(last.slot);
    return open(last);
  }
  last.text.end(FinishReason::error, fmt::format("{} tokens need more than the cache's memory", last.tokens.size()));
  end(last);
  running_.pop_back();
}

void Scheduler::send_back_youngest() {
  cache_.close(std::exchange(running_.back()->slot, -1));
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  memory_full_ = true;
}

void Scheduler::run(const std::function<bool()>& interrupted) {
  tokens_.clear();
  for (size_t i = 0; i < spans_.size(); ++i) {
    const auto first = planned_[i]->tokens.begin() + spans_[i].first_position;
    tokens_.insert(tokens_.end(), first, first + spans_[i].count);
  }
  call_model(interrupted);
  if (!growing_.empty()) stats_.most_pages_in_use = std::max(stats_.most_pages_in_use, cache_.stats().pages_in_use);
  for (Sequence* sequence : planned_) commit(*sequence);
  std::erase_if(running_, [&](const auto& sequence) { return end_if_finished(*sequence); });
}

void Scheduler::call_model(const std::function<bool()>& interrupted) {
  Model::ForwardOptions options;
  if (!ranks_.together()) options.cancelled = interrupted;
  try {
    sample(model_.forward(tokens_, spans_, cache_.layers(), options, workspace_));
  } catch (const Cancelled&) {
    throw;
  } catch (const std::exception& error) {
    if (ranks_.together()) throw;
    for (Sequence* sequence : planned_) sequence->text.end(FinishReason::error, error.what());
  }
}

// Draws the next token of each sequence all of whose tokens have run, and reports it.
void Scheduler::sample(ConstTensorView logits) {
  const int64_t vocabulary = logits.size(1);
  drawn_.assign(planned_.size(), -1);
  const auto draw = [&](int64_t row, int) {
    Sequence& sequence = *planned_[static_cast<size_t>(row)];
    sequence.cached += spans_[static_cast<size_t>(row)].count;
    if (sequence.pending() > 0) return;
    const auto token = sequence.text.draw({logits.as<float>() + row * vocabulary, static_cast<size_t>(vocabulary)});
    if (!token) return;
    sequence.tokens.push_back(*token);
    drawn_[static_cast<size_t>(row)] = *token;
  };
  workspace_.threads().for_work(logits.size(0) * vocabulary).for_each(logits.size(0), draw);
  ranks_.check_drawn(drawn_);
  report();
}

void Scheduler::report() {
  grown_.clear();
  for (size_t row = 0; row < drawn_.size(); ++row)
    if (drawn_[row] != -1) grown_.push_back(&planned_[row]->text);
  for (Continuation* text : grown_) text->report();
  ranks_.share_ends(grown_);
  stats_.generated_tokens += std::ssize(grown_);
}

// Whole pages can be shared; but layers with windows have only what they hold at the time, so that the ends of pieces
// of prompts count as well.
void Scheduler::commit(Sequence& sequence) {
  const bool has_new_page = sequence.cached / page_size_ > sequence.committed / page_size_;
  if (sequence.text.failed() || (!has_new_page && sequence.cached > sequence.prompt_length)) return;
  cache_.commit(sequence.slot, std::span(sequence.tokens).first(static_cast<size_t>(sequence.cached)));
  sequence.committed = sequence.cached;
}

bool Scheduler::end_if_finished(Sequence& sequence) {
  if (!sequence.text.ended()) {
    if (sequence.text.count() == 0 || count_of(sequence.tokens) <= memory_tokens_) return false;
    sequence.text.end(FinishReason::error,
                      fmt::format("the cache's memory holds {} tokens, but the text goes on", memory_tokens_));
  }
  end(sequence);
  return true;
}

// Its owner takes it out of its queue.
void Scheduler::end(Sequence& sequence) {
  if (sequence.slot != -1) cache_.close(sequence.slot);
  memory_full_ = false;
  results_.push_back({.request = sequence.request, .text = sequence.text.take()});
}

}  // namespace regard
