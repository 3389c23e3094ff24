#include "engine/generator.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/prompt_lookup.h"
#include "parallel/same_values.h"
#include "regard/saved_sequence.h"
#include "tensor/fail.h"
#include "tensor/float_environment.h"

namespace regard {
namespace {

// Longer drafts hardly ever come true to their end.
constexpr int64_t kLongestDraft = 64;

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

void check_length(const char* what, size_t tokens, int64_t least, const ModelSpec& spec) {
  const int64_t context = spec.context_length;
  require(static_cast<int64_t>(tokens) >= least && static_cast<int64_t>(tokens) <= context,
          "{} has {} tokens, expected {} to {} (the model's context)", what, tokens, least, context);
}

// -log softmax(logits)[token]
double negative_log_likelihood(std::span<const float> logits, int32_t token) {
  const auto largest = static_cast<double>(*std::ranges::max_element(logits));
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return std::log(sum) + largest - static_cast<double>(logits[static_cast<size_t>(token)]);
}

void check_ids(const char* call, std::span<const int32_t> tokens, const ModelSpec& spec) {
  for (const int32_t token : tokens)
    require(token >= 0 && token < spec.vocab_size, "{}: token id is {}, expected 0 to {}", call, token,
            spec.vocab_size - 1);
}

void check_options(const GenerateOptions& options) {
  (void)Sampler(options.sampler);
  require(options.max_tokens >= 1, "the number of tokens to generate is {}, expected 1 or more", options.max_tokens);
  require(options.draft_length >= 0 && options.draft_length <= kLongestDraft,
          "the draft's length is {}, expected 0 to {}", options.draft_length, kLongestDraft);
}

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
std::vector<int32_t> all_tokens(const ModelSpec& spec, std::span<const int32_t> prompt,
                                const GenerateOptions& options) {
  const bool restored = !options.restore_from.empty();
  std::vector<int32_t> tokens;
  if (restored) tokens = saved_tokens(options.restore_from);
  tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  check_length(restored ? "the text" : "the prompt", tokens.size(), 1, spec);
  return tokens;
}

Text begin_text(const Model& model, std::span<const int32_t> prompt, const GenerateOptions& options) {
  require(model.ranks().size() == 1 || (options.restore_from.empty() && options.save_to.empty()),
          "generate: a sequence is to be saved or restored by {} ranks, expected 1: each has only a part of it",
          model.ranks().size());
  const bool restored = !options.restore_from.empty();
  Text text{.tokens = all_tokens(model.spec(), prompt, options), .caches = {}};
  // What is cached already does not run, so the model can't tell.
  check_ids("generate", text.tokens, model.spec());
  const auto length = static_cast<int64_t>(text.tokens.size());
  // The last token that is generated never goes into the cache.
  const int64_t room = model.spec().context_length - length + 1;
  const int64_t max_tokens = std::min(options.max_tokens, room);
  text.most = static_cast<size_t>(length + max_tokens);
  text.caches = model.make_caches({.slots = 1,
                                   .capacity = length + max_tokens - 1,
                                   .dtype = options.cache_dtype,
                                   .speculation_length = options.draft_length});
  if (restored) {
    (void)restore_sequence(options.restore_from, text.caches, 0, options.model_digest);
    text.cached = text.caches.front().length(0);
    text.take_back(model);
  }
  return text;
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

}  // namespace

void check_generate(const ModelSpec& spec, std::span<const int32_t> prompt, const GenerateOptions& options) {
  check_options(options);
  (void)all_tokens(spec, prompt, options);
}

GenerateResult generate(const Model& model, std::span<const int32_t> prompt, std::span<const int32_t> end_tokens,
                        const GenerateOptions& options, Workspace& workspace) {
  check_options(options);
  Text text = begin_text(model, prompt, options);
  Sampler sampler(options.sampler);
  PromptLookup lookup(options.draft_length);
  lookup.extend(text.tokens);
  GenerateResult result{.restored_tokens = text.cached, .prefill_tokens = text.pending()};

  const Stopwatch prefill;
  auto logits = run_pending(model, text, {}, Model::Logits::last_of_each_span, workspace);
  result.prefill_seconds = prefill.seconds();

  const Stopwatch decode;
  std::vector<int32_t> draft;
  const auto draw = [&](int64_t row) {
    const int32_t token = sampler.sample(logits[row].elements<float>());
    result.interrupted = agree_on({token, options.interrupted() ? 1 : 0}, text.tokens.size(), model);
    text.tokens.push_back(token);
    result.tokens.push_back(token);
    lookup.extend({&token, 1});
    const bool ended = std::ranges::find(end_tokens, token) != end_tokens.end();
    return options.on_token(token) && !result.interrupted && !ended && text.room() > 0;
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
    lookup.judge(drafted, accepted);
    result.draft_tokens += drafted;
    result.accepted_tokens += accepted;
    text.take_back(model);
    if (!more) break;
    draft = lookup.draft(text.room() - 1);
    logits = run_pending(model, text, draft, Model::Logits::all, workspace);
  }
  result.decode_seconds = decode.seconds();
  if (!options.save_to.empty()) save_sequence(options.save_to, text.caches, 0, text.tokens, options.model_digest);
  return result;
}

void check_score(const ModelSpec& spec, std::span<const int32_t> tokens) {
  check_length("the text", tokens.size(), 2, spec);
  // The model only sees the tokens it continues, so the last one is checked here.
  check_ids("score", tokens, spec);
}

Score score(const Model& model, std::span<const int32_t> tokens, Workspace& workspace,
            const std::function<void(int64_t)>& progress, DType cache_dtype) {
  const FloatEnvironment environment;
  check_score(model.spec(), tokens);
  // Logits of so many tokens at a time: 50 MB with a vocabulary of 50,000.
  constexpr int64_t kTokensAtOnce = 256;
  const auto length = static_cast<int64_t>(tokens.size());
  auto caches = model.make_caches({.slots = 1, .capacity = length, .dtype = cache_dtype});
  const Stopwatch watch;
  std::vector<double> losses(tokens.size());
  for (int64_t first = 0; first + 1 < length; first += kTokensAtOnce) {
    const int64_t count = std::min(kTokensAtOnce, length - 1 - first);
    const Span span{.slot = 0, .first_position = first, .count = count};
    const auto logits = model.forward(tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                                      {&span, 1}, caches, {.logits = Model::Logits::all}, workspace);
    require_same_bytes(model.ranks().world(), fmt::format("the checksum of the logits up to token {}", first + count),
                       std::as_bytes(logits.elements<float>()));
    workspace.threads().for_each(count, [&](int64_t i, int) {
      const auto next = static_cast<size_t>(first + i + 1);
      losses[next] = negative_log_likelihood(
          {logits.as<float>() + i * logits.size(1), static_cast<size_t>(logits.size(1))}, tokens[next]);
    });
    progress(first + count + 1);
  }
  double total = 0;
  for (const double loss : losses) total += loss;
  require(!std::isnan(total), "score: the logits hold NaN");
  return {.mean_nll = total / static_cast<double>(length - 1), .seconds = watch.seconds()};
}

}  // namespace regard
