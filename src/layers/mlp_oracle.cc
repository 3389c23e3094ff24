#include "layers/mlp_oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "layers/oracle_parts.h"

namespace regard {
namespace {

using oracle_parts::project;

// ---- One MLP ----

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double activate(Activation function, double x) {
  switch (function) {
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu:
      return x * 0.5 * (1.0 + std::erf(x / std::numbers::sqrt2));
    case Activation::gelu_tanh:
      return x * 0.5 * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::clamped_silu:
      break;  // a function of gate and up together
  }
  return x;
}

// What the last matrix is applied to, from one number of gate and up each.
double inner(const DenseMlp& mlp, double gate, double up) {
  if (mlp.activation == Activation::clamped_silu) {
    const double g = std::min(gate, mlp.limit);
    return (std::clamp(up, -mlp.limit, mlp.limit) + 1.0) * g * sigmoid(mlp.alpha * g);
  }
  return mlp.gated ? activate(mlp.activation, gate) * up : activate(mlp.activation, up);
}

OracleMatrix dense(const DenseMlp& mlp, const DenseWeights& w, const OracleMatrix& x) {
  OracleMatrix up = project(x, {w.up, w.up_bias, 0, mlp.width, w.up_rows});
  const OracleMatrix gate = mlp.gated ? project(x, {w.gate, w.gate_bias, 0, mlp.width, w.gate_rows}) : up;
  for (size_t i = 0; i < up.numbers.size(); ++i) up.numbers[i] = inner(mlp, gate.numbers[i], up.numbers[i]);
  return project(up, {w.down, w.down_bias, 0, x.columns, {}});
}

// ---- The router ----

void softmax(std::vector<double>& x) {
  const double largest = *std::ranges::max_element(x);
  double sum = 0;
  for (double& number : x) sum += number = std::exp(number - largest);
  for (double& number : x) number /= sum;
}

// Indices of the `count` largest of the numbers, of equal ones the first.
std::vector<size_t> largest_of(const std::vector<double>& numbers, int64_t count) {
  std::vector<size_t> order(numbers.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return numbers[a] > numbers[b]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

// Keys of experts outside the best groups become minus infinity.
void keep_best_groups(const RouterSpec& router, std::vector<double>& keys) {
  const size_t size = keys.size() / static_cast<size_t>(router.groups);
  std::vector<double> scores;
  for (size_t first = 0; first < keys.size(); first += size) {
    const std::vector<double> group(keys.data() + first, keys.data() + first + size);
    double score = 0;
    for (const size_t member : largest_of(group, router.group_scored_by)) score += group[member];
    scores.push_back(score);
  }
  const auto best = largest_of(scores, router.groups_per_token);
  for (size_t i = 0; i < keys.size(); ++i)
    if (std::ranges::find(best, i / size) == best.end()) keys[i] = -std::numeric_limits<double>::infinity();
}

// What each expert's output is multiplied by, for one token: [experts], zeros for those it does not pass.
std::vector<double> expert_weights(const ExpertsMlp& mlp, std::vector<double> scores,
                                   std::span<const float> selection_bias) {
  const RouterSpec& router = mlp.router;
  if (router.scores == RouterScores::softmax_then_top_k) softmax(scores);
  if (router.scores == RouterScores::sigmoid)
    for (double& score : scores) score = sigmoid(score);
  std::vector<double> keys = scores;
  for (size_t i = 0; i < selection_bias.size(); ++i) keys[i] += static_cast<double>(selection_bias[i]);
  if (router.groups > 1) keep_best_groups(router, keys);
  const auto chosen = largest_of(keys, mlp.experts_per_token);
  std::vector<double> weights;
  for (const size_t expert : chosen) weights.push_back(scores[expert]);
  if (router.scores == RouterScores::top_k_then_softmax) {
    softmax(weights);
  } else if (router.normalized) {
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (double& weight : weights) weight /= sum;
  }
  std::vector<double> all(scores.size());
  for (size_t i = 0; i < chosen.size(); ++i) all[chosen[i]] = weights[i] * router.scale;
  return all;
}

// ---- Experts ----

OracleMatrix experts(const ExpertsMlp& mlp, const ExpertsWeights& w, const OracleMatrix& x) {
  const OracleMatrix logits = project(x, {w.router, w.router_bias, 0, mlp.experts, {}});
  std::vector<std::vector<double>> weights;
  for (int64_t t = 0; t < x.rows; ++t)
    weights.push_back(expert_weights(mlp, {logits[t], logits[t] + mlp.experts}, w.selection_bias));
  OracleMatrix out(x.rows, x.columns);
  for (size_t expert = 0; expert < w.experts.size(); ++expert)
    for (int64_t t = 0; t < x.rows; ++t) {
      const double weight = weights[static_cast<size_t>(t)][expert];
      if (weight == 0.0) continue;
      OracleMatrix token(1, x.columns);
      std::copy_n(x[t], x.columns, token[0]);
      const OracleMatrix result = dense(mlp.expert, w.experts[expert], token);
      for (int64_t i = 0; i < x.columns; ++i) out[t][i] += weight * result[0][i];
    }
  if (!mlp.shared) return out;
  const OracleMatrix shared = dense(*mlp.shared, w.shared, x);
  for (int64_t t = 0; t < x.rows; ++t) {
    double gate = 0;
    for (size_t i = 0; i < w.shared_gate.size(); ++i) gate += x[t][i] * static_cast<double>(w.shared_gate[i]);
    const double factor = mlp.has_shared_gate ? sigmoid(gate) : 1.0;
    for (int64_t i = 0; i < x.columns; ++i) out[t][i] += factor * shared[t][i];
  }
  return out;
}

}  // namespace

OracleMatrix oracle_mlp(const std::variant<DenseMlp, ExpertsMlp>& spec, const MlpWeights& weights,
                        const OracleMatrix& x) {
  if (const auto* one = std::get_if<DenseMlp>(&spec)) return dense(*one, std::get<DenseWeights>(weights), x);
  return experts(std::get<ExpertsMlp>(spec), std::get<ExpertsWeights>(weights), x);
}

}  // namespace regard
