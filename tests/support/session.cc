#include "support/session.h"

#include <algorithm>
#include <cstring>

namespace regard::test {
namespace {

size_t bytes_of(ConstTensorView view) { return static_cast<size_t>(view.shape().elements()) * size_of(view.dtype()); }

std::vector<float> floats(ConstTensorView view) {
  const Tensor wide = convert(view, DType::f32);
  return {wide.elements<float>().begin(), wide.elements<float>().end()};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

std::string first_difference(std::span<const TokenOutput> ours, std::span<const TokenOutput> theirs) {
  if (ours.size() != theirs.size()) return "other numbers of tokens";
  for (size_t token = 0; token < ours.size(); ++token) {
    const TokenOutput& a = ours[token];
    const TokenOutput& b = theirs[token];
    const char* part = !same_bits(a.key, b.key)         ? "key"
                       : !same_bits(a.value, b.value)   ? "value"
                       : !same_bits(a.lse, b.lse)       ? "log of sums"
                       : !same_bits(a.hidden, b.hidden) ? "hidden state"
                                                        : nullptr;
    if (part != nullptr) return std::string(part) + " of token " + std::to_string(token);
  }
  return "";
}

std::vector<TokenOutput> token_outputs(const AttentionOutput& output) {
  std::vector<TokenOutput> tokens;
  for (int64_t token = 0; token < output.hidden_states.shape()[0]; ++token)
    tokens.push_back({.hidden = floats(output.hidden_states.view()[token]),
                      .key = floats(output.present_key_value.key.view()[token]),
                      .value = floats(output.present_key_value.value.view()[token]),
                      .lse = floats(output.lse.view()[token])});
  return tokens;
}

std::vector<TokenOutput> forward(const Layer& layer, KvCache& cache, Workspace& workspace, ConstTensorView hidden,
                                 std::span<const Span> spans, std::span<const ConstTensorView> active_masks) {
  AttentionInput input;
  input.hidden_states = hidden;
  input.spans = spans;
  input.active_masks = active_masks;
  input.cache = &cache;
  input.workspace = &workspace;
  input.present_key_value = true;
  input.lse = true;
  return token_outputs(layer.attention().forward(input));
}

Session::Session(const Layer& layer, const Options& options)
    : layer_(layer),
      cache_(options.contiguous ? layer.make_contiguous_cache(options.slots, options.capacity)
                                : layer.make_cache(options.slots, options.capacity)),
      workspace_(options.threads) {}

void Session::advance(std::span<const Step> steps) {
  int64_t tokens = 0;
  for (const Step& step : steps) tokens += step.tokens;
  Tensor hidden(layer_.hidden_dtype(), {tokens, layer_.config().input_size()});
  std::vector<Span> spans;
  std::byte* to = hidden.view().data();
  for (const auto& [sequence, count] : steps) {
    const TensorView part = sequence->hidden.view().slice(0, sequence->done(), count);
    std::memcpy(to, part.data(), bytes_of(part));
    to += bytes_of(part);
    spans.push_back({.slot = sequence->slot,
                     .first_position = sequence->done(),
                     .count = count,
                     .prefix = sequence->next_prefix()});
  }
  const std::vector<TokenOutput> outputs = forward(layer_, cache_, workspace_, hidden, spans);
  auto next = outputs.begin();
  for (const auto& [sequence, count] : steps) {
    sequence->outputs.insert(sequence->outputs.end(), next, next + count);
    next += count;
  }
}

void Session::advance(Sequence& sequence, int64_t tokens) {
  const Step step{.sequence = &sequence, .tokens = tokens};
  advance(std::span(&step, 1));
}

void Session::advance_padded(std::span<const Step> steps, Padding padding) {
  const auto batch = static_cast<int64_t>(steps.size());
  int64_t longest = 0;
  for (const Step& step : steps) longest = std::max(longest, step.tokens);
  const auto first_of = [&](const Step& step) { return padding == Padding::left ? longest - step.tokens : 0; };
  Tensor hidden(layer_.hidden_dtype(), {batch, longest, layer_.config().input_size()});
  Tensor mask(DType::boolean, {batch, longest});
  Tensor positions(DType::i64, {batch, longest});
  std::vector<int64_t> slots;
  std::vector<int64_t> prefixes;
  // What stands in the padding must not matter.
  std::memset(hidden.view().data(), 0xFF, bytes_of(hidden));
  for (int64_t b = 0; b < batch; ++b) {
    const auto& [sequence, count] = steps[static_cast<size_t>(b)];
    const int64_t first = first_of(steps[static_cast<size_t>(b)]);
    const TensorView part = sequence->hidden.view().slice(0, sequence->done(), count);
    std::memcpy(hidden.view()[b].slice(0, first, count).data(), part.data(), bytes_of(part));
    for (int64_t i = 0; i < count; ++i) {
      *mask.view()[b][first + i].as<bool>() = true;
      *positions.view()[b][first + i].as<int64_t>() = sequence->done() + i;
    }
    slots.push_back(sequence->slot);
    prefixes.push_back(sequence->next_prefix());
  }
  PaddedAttentionInput input;
  input.hidden_states = hidden;
  input.attention_mask = mask;
  input.position_ids = positions;
  input.seq_ids = slots;
  input.prefixes = prefixes;
  input.cache = &cache_;
  input.workspace = &workspace_;
  input.present_key_value = true;
  input.lse = true;
  const AttentionOutput output = layer_.attention().forward(input);
  const auto& [keys, values] = output.present_key_value;
  for (int64_t b = 0; b < batch; ++b) {
    const Step& step = steps[static_cast<size_t>(b)];
    for (int64_t i = first_of(step); i < first_of(step) + step.tokens; ++i)
      step.sequence->outputs.push_back({.hidden = floats(output.hidden_states.view()[b][i]),
                                        .key = floats(keys.view()[b].slice(1, i, 1)),
                                        .value = floats(values.view()[b].slice(1, i, 1)),
                                        .lse = floats(output.lse.view()[b][i])});
  }
}

std::vector<TokenOutput> prefill_at_once(const Layer& layer, const Tensor& hidden, int64_t prefix) {
  Sequence sequence{.hidden = hidden, .outputs = {}, .prefix = prefix};
  Session session(layer, {.capacity = sequence.length(), .contiguous = true});
  session.advance(sequence, sequence.length());
  return sequence.outputs;
}

}  // namespace regard::test
