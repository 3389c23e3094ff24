#include "support/layer_oracle.h"

#include <algorithm>
#include <sstream>

#include "support/error_budget.h"
#include "support/plain_f32.h"
#include "support/rounding.h"

namespace regard::test {
namespace {

// The rows of a part of all tokens' outputs.
OracleMatrix matrix(std::span<const TokenOutput> tokens, std::vector<float> TokenOutput::*part) {
  OracleMatrix result(static_cast<int64_t>(tokens.size()), static_cast<int64_t>((tokens[0].*part).size()));
  double* to = result.numbers.data();
  for (const TokenOutput& token : tokens) to = std::copy((token.*part).begin(), (token.*part).end(), to);
  return result;
}

// Keys or values of all tokens, as a cache keeps heads of `width`.
OracleMatrix cached_matrix(std::span<const TokenOutput> tokens, std::vector<float> TokenOutput::*part, DType dtype,
                           int64_t width) {
  OracleMatrix result = matrix(tokens, part);
  double* to = result.numbers.data();
  const auto head_width = static_cast<size_t>(width);
  for (const TokenOutput& token : tokens)
    for (size_t first = 0; first < (token.*part).size(); first += head_width, to += head_width)
      round_as_cached(std::span(token.*part).subspan(first, head_width), dtype, to);
  return result;
}

double largest(const OracleMatrix& matrix) {
  double result = 0;
  for (const double number : matrix.numbers) result = std::max(result, std::fabs(number));
  return result;
}

void add_plain(ErrorBudget& budget, const OracleMatrix& exact, std::span<const float> plain) {
  const double magnitude = largest(exact);
  for (size_t i = 0; i < plain.size(); ++i) budget.add_plain(exact.numbers[i], plain[i], magnitude);
}

void add_ours(ErrorBudget& budget, const OracleMatrix& exact, const OracleMatrix& ours, DType stored_as = DType::f32) {
  for (size_t i = 0; i < exact.numbers.size(); ++i)
    budget.add_ours(exact.numbers[i], ours.numbers[i], storage_rounding(exact.numbers[i], stored_as));
}

}  // namespace

OracleMatrix oracle_matrix(ConstTensorView hidden) {
  OracleMatrix matrix(hidden.size(0), hidden.size(1));
  const Tensor wide = convert(hidden, DType::f32);
  std::copy(wide.elements<float>().begin(), wide.elements<float>().end(), matrix.numbers.begin());
  return matrix;
}

std::string difference_from_oracle(const Layer& layer, const Sequence& sequence) {
  // The oracle attends to what the cache holds: our own keys and values, rounded to its type.
  const AttentionConfig& config = layer.config();
  const auto cached_part = [&](std::vector<float> TokenOutput::*part, int64_t width) {
    return cached_matrix(sequence.outputs, part, layer.cache_dtype(), width);
  };
  const OracleKeyValues cached{.keys = cached_part(&TokenOutput::key, config.head_dim),
                               .values = cached_part(&TokenOutput::value, config.v_head_dim)};
  return difference_from_oracle(
      layer, {.hidden_states = oracle_matrix(sequence.hidden), .prefix = sequence.prefix, .cached = &cached},
      sequence.outputs);
}

std::string difference_from_oracle(const Layer& layer, const OracleInput& input, std::span<const TokenOutput> ours) {
  const OracleOutput exact = oracle(layer.config(), layer.weights(), input);
  ErrorBudget hidden, keys, values, lse;
  const int64_t rows = input.hidden_states.rows * layer.config().num_attention_heads;
  for (int order = 0; order < orders_for(rows); ++order) {
    const PlainOutput plain = plain_layer(layer.config(), layer.weights(), input, exact, order);
    add_plain(hidden, exact.hidden_states, plain.hidden_states);
    add_plain(keys, exact.key_values.keys, plain.keys);
    add_plain(values, exact.key_values.values, plain.values);
    for (size_t i = 0; i < plain.attended.lse.size(); ++i)
      lse.add_plain(exact.lse.numbers[i], plain.attended.lse[i], plain.attended.lse_sensitivity[i]);
  }
  add_ours(hidden, exact.hidden_states, matrix(ours, &TokenOutput::hidden), layer.hidden_dtype());
  add_ours(keys, exact.key_values.keys, matrix(ours, &TokenOutput::key));
  add_ours(values, exact.key_values.values, matrix(ours, &TokenOutput::value));
  add_ours(lse, exact.lse, matrix(ours, &TokenOutput::lse));
  std::ostringstream message;
  if (!keys.holds()) message << "keys: " << keys << "\n";
  if (!values.holds()) message << "values: " << values << "\n";
  if (!lse.holds()) message << "log of sums: " << lse << "\n";
  if (!hidden.holds()) message << "hidden states: " << hidden << "\n";
  return message.str();
}

}  // namespace regard::test
