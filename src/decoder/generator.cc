#include "decoder/generator.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "tensor/fail.h"

namespace regard {
namespace {

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

void check_length(const char* what, size_t tokens, int64_t least, const Decoder& decoder) {
  const int64_t context = decoder.config().context_length;
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

}  // namespace

GenerateResult generate(const Decoder& decoder, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                        const GenerateOptions& options, Workspace& workspace) {
  check_length("the prompt", prompt.size(), 1, decoder);
  require(options.max_tokens >= 1, "the number of tokens to generate is {}, expected 1 or more", options.max_tokens);
  const auto length = static_cast<int64_t>(prompt.size());
  // The last token that is generated never goes into the cache.
  const int64_t room = decoder.config().context_length - length + 1;
  const int64_t max_tokens = std::min(options.max_tokens, room);
  auto caches = decoder.make_caches({.slots = 1, .capacity = length + max_tokens - 1, .dtype = options.cache_dtype});
  Sampler sampler(options.sampler);
  GenerateResult result;

  const Stopwatch prefill;
  Span span{.slot = 0, .first_position = 0, .count = length};
  auto logits = decoder.forward(prompt, {&span, 1}, caches, Decoder::Logits::last_of_each_span, workspace);
  result.prefill_seconds = prefill.seconds();

  const Stopwatch decode;
  const auto ends = tokenizer.end_tokens();
  while (true) {
    const int32_t token = sampler.sample(logits.elements<float>());
    result.tokens.push_back(token);
    const bool ended = std::ranges::find(ends, token) != ends.end();
    if (!options.on_token(token) || ended || static_cast<int64_t>(result.tokens.size()) == max_tokens) break;
    span = {.slot = 0, .first_position = span.first_position + span.count, .count = 1};
    logits = decoder.forward({&token, 1}, {&span, 1}, caches, Decoder::Logits::last_of_each_span, workspace);
  }
  result.decode_seconds = decode.seconds();
  return result;
}

Score score(const Decoder& decoder, std::span<const int32_t> tokens, Workspace& workspace,
            const std::function<void(int64_t)>& progress, DType cache_dtype) {
  check_length("the text", tokens.size(), 2, decoder);
  // The decoder only sees the tokens it continues, so the last one is checked here.
  const int64_t vocabulary = decoder.config().vocab_size;
  for (const int32_t token : tokens)
    require(token >= 0 && token < vocabulary, "score: token id is {}, expected 0 to {}", token, vocabulary - 1);
  // Logits of so many tokens at a time: 50 MB with a vocabulary of 50,000.
  constexpr int64_t kTokensAtOnce = 256;
  const auto length = static_cast<int64_t>(tokens.size());
  auto caches = decoder.make_caches({.slots = 1, .capacity = length, .dtype = cache_dtype});
  const Stopwatch watch;
  std::vector<double> losses(tokens.size());
  for (int64_t first = 0; first + 1 < length; first += kTokensAtOnce) {
    const int64_t count = std::min(kTokensAtOnce, length - 1 - first);
    const Span span{.slot = 0, .first_position = first, .count = count};
    const auto logits = decoder.forward(tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                                        {&span, 1}, caches, Decoder::Logits::all, workspace);
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
