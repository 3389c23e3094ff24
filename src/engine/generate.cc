#include <algorithm>
#include <chrono>
#include <memory>

#include "engine/check_tokens.h"
#include "engine/continuation.h"
#include "engine/model_drafter.h"
#include "engine/prompt_lookup.h"
#include "engine/stopwatch.h"
#include "parallel/same_values.h"
#include "regard/generation.h"
#include "regard/saved_sequence.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Longer drafts hardly ever come true to their end.
constexpr int64_t kLongestDraft = 64;

// A text that grows, and the caches of its first tokens.
struct Text {
  std::vector<int32_t> tokens;
  std::vector<KvCache> caches;
  size_t most = 0;     // tokens that it may come to
  int64_t cached = 0;  // tokens whose keys and values are there

  [[nodiscard]] int64_t room() const { return static_cast<int64_t>(most - tokens.size()); }
  // Tokens that have to run: at least the last one, which gives the next one's logits.
  [[nodiscard]] int64_t pending() const { return static_cast<int64_t>(tokens.size()) - cached; }
  // Forgets what is cached of the last token and of drafts behind it.
  void take_back(const Model& model) {
    cached = std::min(cached, static_cast<int64_t>(tokens.size()) - 1);
    model.truncate(caches, 0, cached);
  }
};

// What was said before, and the prompt.
std::vector<int32_t> all_tokens(const ModelSpec& spec, const GenerationRequest& request,
                                const GenerateOptions& options) {
  const bool restored = !options.restore_from.empty();
  std::vector<int32_t> tokens;
  if (restored) tokens = saved_tokens(options.restore_from);
  tokens.insert(tokens.end(), request.prompt.begin(), request.prompt.end());
  check_length(restored ? "the text" : "the prompt", tokens.size(), 1, spec);
  return tokens;
}

Text begin_text(const Model& model, const GenerationRequest& request, const GenerateOptions& options) {
  const bool restored = !options.restore_from.empty();
  Text text{.tokens = all_tokens(model.spec(), request, options), .caches = {}};
  // What is cached already does not run, so the model can't tell.
  check_ids("generate: token id", text.tokens, model.spec());
  const auto length = static_cast<int64_t>(text.tokens.size());
  const int64_t most = most_tokens(request, length, model.spec().context_length);
  text.most = static_cast<size_t>(length + most);
  text.caches = model.make_caches({.slots = 1,
                                   .capacity = length + most - 1,
                                   .dtype = options.cache_dtype,
                                   .speculation_length = options.draft_length});
  if (restored) {
    (void)restore_sequence(options.restore_from, model, text.caches, 0, options.model_digest);
    text.cached = text.caches.front().length(0);
    text.take_back(model);
  }
  return text;
}

// Runs the tokens that are not cached, and a draft behind them.
ConstTensorView run_pending(const Model& model, Text& text, std::span<const int32_t> draft, Model::Logits logits,
                            Workspace& workspace) {
  const int64_t first = text.cached;
  std::vector<int32_t> tokens(text.tokens.begin() + first, text.tokens.end());
  tokens.insert(tokens.end(), draft.begin(), draft.end());
  const Span span{.slot = 0, .first_position = first, .count = static_cast<int64_t>(tokens.size())};
  text.cached = first + span.count;
  return model.forward(tokens, {&span, 1}, text.caches, {.logits = logits}, workspace);
}

// What a rank has drawn, and whether it is to stop behind that.
struct Drawn {
  int32_t token;
  int32_t interrupted;
};

// Whether any rank is interrupted. Throws Error where they have not drawn the same: each would go on with a text of its
// own, or wait for one that has ended.
bool agree_on(const Drawn& own, size_t position, const Model& model) {
  if (model.ranks().size() == 1) return own.interrupted != 0;
  const std::vector<Drawn> all = model.ranks().world().gather(own);
  std::vector<std::string> tokens;
  for (const Drawn& drawn : all) tokens.push_back(fmt::to_string(drawn.token));
  require_same(fmt::format("the token drawn at position {}", position), tokens);
  return std::ranges::any_of(all, [](const Drawn& drawn) { return drawn.interrupted != 0; });
}

void check_options(const GenerationRequest& request, const TextEnds& ends, const GenerateOptions& options) {
  check_settings(request, ends);
  const int64_t shortest = options.draft_model == nullptr ? 0 : 1;
  require(options.draft_length >= shortest && options.draft_length <= kLongestDraft,
          "the draft's length is {}, expected {} to {}", options.draft_length, shortest, kLongestDraft);
}

std::unique_ptr<Drafter> make_drafter(const Model& model, const Text& text, const GenerateOptions& options,
                                      Workspace& workspace) {
  if (options.draft_model == nullptr) return std::make_unique<PromptLookup>(options.draft_length);
  const int64_t vocabulary =
      options.tokenizer == nullptr ? model.spec().vocab_size : options.tokenizer->vocabulary_size();
  const KvCacheOptions cache{.slots = 1, .capacity = static_cast<int64_t>(text.most), .dtype = options.cache_dtype};
  return std::make_unique<ModelDrafter>(*options.draft_model, options.draft_length, vocabulary, cache, workspace);
}

GenerationRequest without_prompt(const GenerationRequest& request) {
  GenerationRequest settings = request;
  settings.prompt.clear();
  return settings;
}

}  // namespace

void check_generate(const ModelSpec& spec, const GenerationRequest& request, const GenerateOptions& options) {
  check_options(request, TextEnds::of(options.tokenizer, options.end_tokens), options);
  (void)all_tokens(spec, request, options);
}

GenerateResult generate(const Model& model, const GenerationRequest& request, const GenerateOptions& options,
                        Workspace& workspace) {
  const TextEnds ends = TextEnds::of(options.tokenizer, options.end_tokens);
  check_options(request, ends, options);
  Text text = begin_text(model, request, options);
  Continuation continuation(without_prompt(request), ends, text.room());
  const std::unique_ptr<Drafter> drafter = make_drafter(model, text, options, workspace);
  drafter->extend(text.tokens);
  GenerateResult result;
  result.restored_tokens = text.cached;
  result.prefill_tokens = text.pending();

  const Stopwatch prefill;
  auto logits = run_pending(model, text, {}, Model::Logits::last_of_each_span, workspace);
  result.prefill_seconds = prefill.seconds();

  const Stopwatch decode;
  std::vector<int32_t> draft;
  // Returns whether the text goes on.
  const auto draw = [&](int64_t row) {
    const auto token = continuation.draw(logits[row].elements<float>());
    if (!token) return false;
    const bool interrupted = options.interrupted && options.interrupted();
    result.interrupted = agree_on({*token, interrupted ? 1 : 0}, text.tokens.size(), model);
    text.tokens.push_back(*token);
    drafter->extend({&*token, 1});
    continuation.report();
    if (result.interrupted && !continuation.ended()) continuation.end(FinishReason::cancelled);
    return !continuation.ended();
  };
  while (true) {
    // The row after a token of the draft is only true if that token was drawn.
    bool more = draw(0);
    const auto drafted = static_cast<int64_t>(draft.size());
    int64_t accepted = 0;
    while (accepted < drafted && text.tokens.back() == draft[static_cast<size_t>(accepted)]) {
      ++accepted;
      if (!more) break;
      more = draw(accepted);
    }
    drafter->judge(drafted, accepted);
    result.draft_tokens += drafted;
    result.accepted_tokens += accepted;
    text.take_back(model);
    if (!more) break;
    draft = drafter->draft(text.room() - 1);
    logits = run_pending(model, text, draft, Model::Logits::all, workspace);
  }
  result.decode_seconds = decode.seconds();
  static_cast<GeneratedText&>(result) = continuation.take();
  require(result.finish != FinishReason::error, "{}", result.error);
  if (!options.save_to.empty())
    save_sequence(options.save_to, model, text.caches, 0, text.tokens, options.model_digest);
  return result;
}

}  // namespace regard
