#include "engine/token_outputs.h"

#include <algorithm>

#include "parallel/same_values.h"
#include "tensor/fail.h"

namespace regard {
namespace {

constexpr int64_t kTokensAtOnce = 512;

// Rows [count, width] into the rows from `first` on.
void copy_rows(ConstTensorView from, int64_t first, TensorView to) {
  std::ranges::copy(from.elements<float>(), to.as<float>() + first * to.size(1));
}

}  // namespace

void check_outputs(const ModelSpec& spec, std::span<const int32_t> tokens) {
  const auto length = static_cast<int64_t>(tokens.size());
  require(length >= 1 && length <= spec.context_length,
          "the text has {} tokens, expected 1 to {} (the model's context)", length, spec.context_length);
  for (const int32_t token : tokens)
    require(token >= 0 && token < spec.vocab_size, "token id is {}, expected 0 to {}", token, spec.vocab_size - 1);
}

TokenOutputs outputs_of(const Model& model, std::span<const int32_t> tokens, const TokenOutputsOptions& options,
                        Workspace& workspace) {
  const ModelSpec& spec = model.spec();
  const auto length = static_cast<int64_t>(tokens.size());
  check_outputs(spec, tokens);
  const int64_t states = std::ssize(spec.layers) + 1;
  TokenOutputs out{.logits = Tensor(DType::f32, {length, spec.vocab_size}), .hidden_states = {}};
  if (options.hidden_states) out.hidden_states = Tensor(DType::f32, {states, length, spec.hidden_size});
  auto caches = model.make_caches({.slots = 1, .capacity = length, .dtype = options.cache_dtype});
  for (int64_t first = 0; first < length; first += kTokensAtOnce) {
    const Span span{.slot = 0, .first_position = first, .count = std::min(kTokensAtOnce, length - first)};
    Model::ForwardOptions call{.logits = Model::Logits::all};
    Tensor hidden;
    if (options.hidden_states) {
      hidden = Tensor(DType::f32, {states, span.count, spec.hidden_size});
      call.hidden_states = hidden;
    }
    const ConstTensorView logits =
        model.forward(tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(span.count)), {&span, 1}, caches,
                      call, workspace);
    require_same_bytes(model.ranks().world(),
                       fmt::format("the checksum of the logits up to token {}", first + span.count),
                       std::as_bytes(logits.elements<float>()));
    copy_rows(logits, first, out.logits);
    for (int64_t i = 0; i < states && options.hidden_states; ++i)
      copy_rows(hidden.view()[i], first, out.hidden_states.view()[i]);
    options.progress(first + span.count);
  }
  return out;
}

}  // namespace regard
