#include "layers/experts_mlp.h"

#include <algorithm>
#include <cmath>

#include "kernels/workspace.h"
#include "layers/for_each_row.h"
#include "layers/router.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

void check_size(const char* name, const std::vector<float>& numbers, int64_t count, bool expected) {
  require(static_cast<int64_t>(numbers.size()) == (expected ? count : 0), "mlp: {} has {} numbers, expected {}", name,
          numbers.size(), expected ? count : 0);
  require(std::ranges::none_of(numbers, [](float number) { return std::isnan(number); }), "mlp: {} holds NaN", name);
}

}  // namespace

ExpertsPart ExpertsPart::load(const ExpertsMlp& spec, const ExpertsWeights& weights, int64_t hidden_size,
                              const Threads& threads, const Ranks& ranks) {
  check_router(spec.router, spec.experts, spec.experts_per_token);
  require(static_cast<int64_t>(weights.experts.size()) == spec.experts, "mlp: {} experts are given, expected {}",
          weights.experts.size(), spec.experts);
  require(weights.router.rows() == spec.experts && weights.router.columns() == hidden_size,
          "mlp: router has shape [{}, {}], expected [{}, {}]", weights.router.rows(), weights.router.columns(),
          spec.experts, hidden_size);
  check_size("the bias of router", weights.router_bias, spec.experts, spec.router.has_bias);
  check_size("the selection bias", weights.selection_bias, spec.experts, spec.router.has_selection_bias);
  ExpertsPart part;
  part.spec_ = spec;
  part.share_ = WidthShare::of(spec.expert.width, ranks);
  part.router_ = Linear::load(weights.router, weights.router_bias, threads);
  part.selection_bias_ = weights.selection_bias;
  // The rank that has the first columns adds the biases to their sum.
  const bool down_bias = part.share_.own.first == 0 && part.share_.own.count > 0;
  part.experts_.reserve(weights.experts.size());
  for (size_t i = 0; i < weights.experts.size(); ++i) {
    try {
      part.experts_.push_back(
          MlpMatrices::load(spec.expert, weights.experts[i], hidden_size, part.share_, down_bias, threads));
    } catch (const Error& error) {
      fail("expert {}: {}", i, error.what());
    }
    const MlpMatrices& expert = part.experts_.back();
    part.first_layers_.push_back(spec.expert.gated ? std::vector{&expert.gate, &expert.up} : std::vector{&expert.up});
    part.last_layers_.push_back(&expert.down);
  }
  return part;
}

// Chooses experts for all rows, and sorts the rows by expert.
void ExpertsPart::route(ConstTensorView x, Workspace& workspace) const {
  Memory& memory = workspace.memory();
  const int64_t tokens = x.size(0);
  const auto most = static_cast<size_t>(spec_.experts_per_token);
  const auto experts = static_cast<size_t>(spec_.experts);
  const TensorView logits = memory.matrix(Memory::Piece::router_logits, tokens, spec_.experts);
  apply(std::array{&router_}, x, std::array{logits}, workspace);
  memory.chosen_experts.resize(static_cast<size_t>(tokens) * most);
  memory.chosen_weights.resize(memory.chosen_experts.size());
  memory.router_scores.resize(4 * experts * static_cast<size_t>(workspace.threads().count()));
  for_each_row(tokens, workspace.threads(), [&](int64_t token, int thread) {
    const size_t first = static_cast<size_t>(token) * most;
    choose_experts(spec_.router, {logits.as<float>() + token * spec_.experts, experts}, selection_bias_,
                   std::span(memory.router_scores).subspan(4 * experts * static_cast<size_t>(thread), 4 * experts),
                   std::span(memory.chosen_experts).subspan(first, most),
                   std::span(memory.chosen_weights).subspan(first, most));
  });
  sort_rows(tokens, workspace);
}

// A counting sort: rows of one expert stay in order of their tokens.
void ExpertsPart::sort_rows(int64_t tokens, Workspace& workspace) const {
  Memory& memory = workspace.memory();
  std::vector<int64_t>& ends = memory.expert_ends;
  ends.assign(static_cast<size_t>(spec_.experts), 0);
  for (const int64_t expert : memory.chosen_experts) ++ends[static_cast<size_t>(expert)];
  memory.row_groups.clear();
  int64_t first = 0;
  for (size_t expert = 0; expert < ends.size(); ++expert) {
    const int64_t count = ends[expert];
    if (count > 0) memory.row_groups.push_back({.first = first, .count = count, .layers = first_layers_[expert]});
    ends[expert] = first;
    first += count;
  }
  memory.expert_tokens.resize(memory.chosen_experts.size());
  memory.chosen_rows.resize(memory.chosen_experts.size());
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t i = token * spec_.experts_per_token; i < (token + 1) * spec_.experts_per_token; ++i) {
      const int64_t row = ends[static_cast<size_t>(memory.chosen_experts[static_cast<size_t>(i)])]++;
      memory.chosen_rows[static_cast<size_t>(i)] = row;
      memory.expert_tokens[static_cast<size_t>(row)] = token;
    }
}

TensorView ExpertsPart::inner(ConstTensorView x, Workspace& workspace) const {
  Memory& memory = workspace.memory();
  route(x, workspace);
  const auto rows = static_cast<int64_t>(memory.expert_tokens.size());
  const int64_t width = share_.own.count;
  const TensorView gate = memory.matrix(Memory::Piece::gate, rows, width);
  if (width > 0) {
    TensorView up;
    if (spec_.expert.gated) {
      up = memory.matrix(Memory::Piece::up, rows, width);
      apply_grouped(memory.row_groups, x, memory.expert_tokens, std::array{gate, up}, workspace);
    } else {
      apply_grouped(memory.row_groups, x, memory.expert_tokens, std::array{gate}, workspace);
    }
    experts_.front().activate(gate, up, workspace.threads());
  }
  // From here on the rows go through the last layers.
  size_t group = 0;
  for (size_t expert = 0, first = 0; expert < last_layers_.size(); ++expert) {
    const auto end = static_cast<size_t>(memory.expert_ends[expert]);
    if (end > first) memory.row_groups[group++].layers = std::span(&last_layers_[expert], 1);
    first = end;
  }
  return gate;
}

void ExpertsPart::finish(ConstTensorView inner, TensorView out, Workspace& workspace) const {
  Memory& memory = workspace.memory();
  const TensorView rows = memory.matrix(Memory::Piece::expert_rows, inner.size(0), out.size(1));
  apply_grouped(memory.row_groups, inner, {}, std::array{rows}, workspace);
  combine(rows, out, workspace);
}

void ExpertsPart::partials(ConstTensorView inner, std::span<float> out, Workspace& workspace) const {
  Memory& memory = workspace.memory();
  const int64_t hidden = router_.columns();
  const auto tokens = static_cast<int64_t>(memory.chosen_experts.size()) / spec_.experts_per_token;
  const auto leaf = [&](int64_t first, int64_t count, TensorView sum) {
    const TensorView rows = memory.matrix(Memory::Piece::expert_rows, inner.size(0), hidden);
    apply_grouped_columns(memory.row_groups, inner, first, count, rows, workspace);
    if (first == 0) add_biases(rows, workspace);
    combine(rows, sum, workspace);
  };
  share_.sum->multiply(share_.own.count, {tokens, hidden}, leaf, out, workspace);
}

// Those that this rank has.
void ExpertsPart::add_biases(TensorView rows, Workspace& workspace) const {
  const int64_t hidden = rows.size(1);
  for (const RowGroup& group : workspace.memory().row_groups) {
    const std::span<const float> bias = group.layers.front()->bias();
    if (bias.empty()) return;
    for_each_row(group.count, workspace.threads(), [&](int64_t row, int) {
      kernels::add_scaled(bias.data(), 1.0F, hidden, rows.as<float>() + (group.first + row) * hidden);
    });
  }
}

void ExpertsPart::combine(ConstTensorView rows, TensorView out, Workspace& workspace) const {
  const Memory& memory = workspace.memory();
  const int64_t hidden = out.size(1);
  for_each_row(out.size(0), workspace.threads(), [&](int64_t token, int) {
    float* sum = out.as<float>() + token * hidden;
    std::fill_n(sum, hidden, 0.0F);
    for (int64_t i = token * spec_.experts_per_token; i < (token + 1) * spec_.experts_per_token; ++i)
      kernels::add_scaled(rows.as<float>() + memory.chosen_rows[static_cast<size_t>(i)] * hidden,
                          memory.chosen_weights[static_cast<size_t>(i)], hidden, sum);
  });
}

int64_t ExpertsPart::bytes() const {
  int64_t sum = router_.bytes();
  for (const MlpMatrices& expert : experts_) sum += expert.bytes();
  return sum;
}

int64_t ExpertsPart::weights_per_token() const {
  return router_.rows() * router_.columns() + spec_.experts_per_token * experts_.front().weights();
}

double ExpertsPart::bytes_read(int64_t tokens) const {
  const int64_t passed = std::min(spec_.experts, tokens * spec_.experts_per_token);
  const double share = static_cast<double>(passed) / static_cast<double>(spec_.experts);
  return static_cast<double>(router_.bytes()) + share * static_cast<double>(bytes() - router_.bytes());
}

}  // namespace regard
