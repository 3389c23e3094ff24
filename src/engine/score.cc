#include "engine/score.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/check_tokens.h"
#include "engine/stopwatch.h"
#include "parallel/same_values.h"
#include "regard/sampler.h"
#include "tensor/fail.h"
#include "tensor/float_environment.h"

namespace regard {

void check_score(const ModelSpec& spec, std::span<const int32_t> tokens) {
  check_length("the text", tokens.size(), 2, spec);
  // The model only sees the tokens it continues, so the last one is checked here.
  check_ids("score: token id", tokens, spec);
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
      losses[next] = -log_probability({logits.as<float>() + i * logits.size(1), static_cast<size_t>(logits.size(1))},
                                      tokens[next]);
    });
    progress(first + count + 1);
  }
  double total = 0;
  for (const double loss : losses) total += loss;
  require(!std::isnan(total), "score: the logits hold NaN");
  return {.mean_nll = total / static_cast<double>(length - 1), .seconds = watch.seconds()};
}

}  // namespace regard
