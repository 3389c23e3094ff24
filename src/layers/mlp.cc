#include "layers/mlp.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/workspace.h"
#include "layers/dense_mlp.h"
#include "layers/experts_mlp.h"
#include "layers/for_each_row.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

// x: all ranks' rows; out: this rank's.
template <class Part>
void pass(const Part& part, ConstTensorView x, const RowSplit& split, TensorView out, Workspace& workspace) {
  std::optional<SummedRows> sums;
  if (part.sum()) sums.emplace(part.summed_rows(workspace));
  for (int64_t first = 0; first < x.size(0); first += Mlp::kPieceTokens) {
    const ElementRange piece{.first = first, .count = std::min(Mlp::kPieceTokens, x.size(0) - first)};
    const TensorView inner = part.inner(x.slice(0, first, piece.count), workspace);
    const auto fill = [&](std::span<float> partials) { part.partials(inner, partials, workspace); };
    if (!sums) {
      part.finish(inner, out.slice(0, first, piece.count), workspace);
    } else if (!split.scattered()) {
      sums->add_partials(fill, out.slice(0, first, piece.count));
    } else {
      std::vector<ElementRange> tokens;
      for (const ElementRange& range : split.ranges) tokens.push_back(inside(range, piece));
      const ElementRange own = tokens[static_cast<size_t>(split.rank)];
      const int64_t own_first = own.count == 0 ? 0 : first + own.first - split.own().first;
      sums->scatter_partials(fill, piece.count, tokens, out.slice(0, own_first, own.count));
    }
  }
  if (sums) sums->finish();
}

}  // namespace

struct Mlp::Parts {
  std::variant<DensePart, ExpertsPart> main;
  std::optional<DensePart> shared;  // beside experts
  Linear shared_gate;               // [1, hidden], or empty
  Ranks ranks;
};

Mlp::Mlp(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Mlp::Mlp(Mlp&&) noexcept = default;
Mlp& Mlp::operator=(Mlp&&) noexcept = default;
Mlp::~Mlp() = default;

Mlp Mlp::load(const std::variant<DenseMlp, ExpertsMlp>& spec, const MlpWeights& weights, int64_t hidden_size,
              const Threads& threads, const Ranks& ranks) {
  require(spec.index() == weights.index(), "mlp: the weights are those of {}, expected {}",
          weights.index() == 0 ? "one MLP" : "experts", spec.index() == 0 ? "one MLP" : "experts");
  auto parts = std::make_unique<Parts>();
  parts->ranks = ranks;
  if (const auto* dense = std::get_if<DenseMlp>(&spec)) {
    parts->main = DensePart::load(*dense, std::get<DenseWeights>(weights), hidden_size, threads, ranks);
    return Mlp(std::move(parts));
  }
  const auto& experts = std::get<ExpertsMlp>(spec);
  const auto& stored = std::get<ExpertsWeights>(weights);
  parts->main = ExpertsPart::load(experts, stored, hidden_size, threads, ranks);
  require(experts.shared || !experts.has_shared_gate, "mlp: has_shared_gate is true, but there is no shared MLP");
  require(stored.shared_gate.size() == static_cast<size_t>(experts.has_shared_gate ? hidden_size : 0),
          "mlp: the shared MLP's gate has {} numbers, expected {}", stored.shared_gate.size(),
          experts.has_shared_gate ? hidden_size : 0);
  if (experts.shared) parts->shared = DensePart::load(*experts.shared, stored.shared, hidden_size, threads, ranks);
  if (experts.has_shared_gate)
    parts->shared_gate = Linear::load(
        WeightView::make(WeightType::f32, 1, hidden_size, std::as_bytes(std::span(stored.shared_gate))), {}, threads);
  return Mlp(std::move(parts));
}

void Mlp::run(ConstTensorView x, const RowSplit& split, TensorView out, Workspace& workspace) const {
  Memory& memory = workspace.memory();
  const int64_t hidden = out.size(1);
  ConstTensorView all = x;
  if (split.scattered()) {
    const TensorView gathered = memory.matrix(Memory::Piece::all_hidden, split.total(), hidden);
    gather_split_rows(parts_->ranks, split, x, gathered);
    all = gathered;
  }
  std::visit([&](const auto& part) { pass(part, all, split, out, workspace); }, parts_->main);
  if (!parts_->shared) return;
  const TensorView shared = memory.matrix(Memory::Piece::shared, out.size(0), hidden);
  pass(*parts_->shared, all, split, shared, workspace);
  TensorView gates;
  if (!parts_->shared_gate.empty()) {
    gates = memory.matrix(Memory::Piece::router_logits, out.size(0), 1);
    const Linear* gate = &parts_->shared_gate;
    apply({&gate, 1}, x, {&gates, 1}, workspace);
  }
  for_each_row(out.size(0), workspace.threads(), [&](int64_t row, int) {
    const float factor =
        gates.empty() ? 1.0F : static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(gates.as<float>()[row]))));
    kernels::add_scaled(shared.as<float>() + row * hidden, factor, hidden, out.as<float>() + row * hidden);
  });
}

int64_t Mlp::bytes() const {
  const int64_t main = std::visit([](const auto& part) { return part.bytes(); }, parts_->main);
  return main + parts_->shared_gate.bytes() + (parts_->shared ? parts_->shared->bytes() : 0);
}

int64_t Mlp::weights_per_token() const {
  const int64_t main = std::visit([](const auto& part) { return part.weights_per_token(); }, parts_->main);
  return main + parts_->shared_gate.columns() + (parts_->shared ? parts_->shared->weights_per_token() : 0);
}

double Mlp::bytes_read(int64_t tokens) const {
  const double main = std::visit([&](const auto& part) { return part.bytes_read(tokens); }, parts_->main);
  return main + static_cast<double>(parts_->shared_gate.bytes()) +
         (parts_->shared ? parts_->shared->bytes_read(tokens) : 0.0);
}

}  // namespace regard
