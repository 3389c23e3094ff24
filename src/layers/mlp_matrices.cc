#include "layers/mlp_matrices.h"

#include "layers/for_each_row.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// One matrix of an MLP, with its name in messages.
struct Part {
  const char* name;
  const StoredMatrix& matrix;
  std::span<const float> bias;
};

Linear load_part(const Part& part, int64_t rows, int64_t columns, bool has_bias, const Threads& threads,
                 std::span<const int64_t> wanted_rows, std::span<const Columns> wanted_columns) {
  require(part.matrix.columns() == columns && (!wanted_rows.empty() || part.matrix.rows() == rows),
          "mlp: {} has shape [{}, {}], expected [{}, {}]", part.name, part.matrix.rows(), part.matrix.columns(), rows,
          columns);
  require(part.bias.empty() != has_bias, "mlp: the bias of {} is {}, but the model says {}", part.name,
          has_bias ? "missing" : "given", has_bias ? "there is one" : "there is none");
  try {
    return Linear::load(part.matrix, part.bias, threads, wanted_rows, wanted_columns);
  } catch (const Error& error) {
    fail("mlp: {}: {}", part.name, error.what());
  }
}

// The stored rows of own rows first..first+count-1; empty: all, as stored.
std::vector<int64_t> stored_rows(std::span<const int64_t> order, int64_t stored, ElementRange own) {
  if (own.count == stored) return {order.begin(), order.end()};
  std::vector<int64_t> rows;
  for (int64_t row = own.first; row < own.end(); ++row)
    rows.push_back(order.empty() ? row : order[static_cast<size_t>(row)]);
  return rows;
}

}  // namespace

// The leaves belong to the model with `deterministic`, else each rank's columns are one. Ranks may have none where
// there are fewer leaves than ranks.
WidthShare WidthShare::of(int64_t width, const Ranks& ranks) {
  const ParallelConfig& parallel = ranks.config();
  if (ranks.size() == 1 && !parallel.deterministic) return {.own = {.first = 0, .count = width}, .sum = nullptr};
  WidthShare share{.own = mlp_part_of(width, ranks.size(), ranks.rank()), .sum = nullptr};
  std::vector<ElementRange> leaves;
  int64_t count = 0;
  for (int64_t rank = 0; rank < ranks.size(); ++rank) {
    const ElementRange own = part_of(mlp_leaves(width), ranks.size(), rank);
    leaves.push_back(parallel.deterministic ? own : ElementRange{.first = count, .count = own.count > 0 ? 1 : 0});
    count += leaves.back().count;
  }
  const int64_t leaf_width = parallel.deterministic ? kMlpLeaf : std::max<int64_t>(1, share.own.count);
  share.sum = std::make_shared<const RowParallel>(ranks.shared_world(), SumTree(count), leaves, leaf_width,
                                                  parallel.rpl_reduce_dtype.value_or(DType::f32));
  return share;
}

MlpMatrices MlpMatrices::load(const DenseMlp& spec, const DenseWeights& weights, int64_t hidden_size,
                              const WidthShare& share, bool down_bias, const Threads& threads) {
  require(spec.gated || spec.activation != Activation::clamped_silu, "mlp: clamped_silu is asked for without a gate");
  require(spec.gated != weights.gate.empty() || share.own.count == 0, "mlp: a gate is {}, but the model says {}",
          spec.gated ? "missing" : "given", spec.gated ? "there is one" : "there is none");
  MlpMatrices matrices;
  matrices.activation = {
      .kind = spec.activation, .alpha = static_cast<float>(spec.alpha), .limit = static_cast<float>(spec.limit)};
  const auto bias_of_down = down_bias ? std::span<const float>(weights.down_bias) : std::span<const float>();
  if (share.own.count == 0) {
    const StoredMatrix none(WeightView::make(WeightType::f32, hidden_size, 0, {}));
    matrices.down = Linear::load(none, bias_of_down, threads);
    return matrices;
  }
  const int64_t stored = weights.up_rows.empty() ? weights.up.rows() : static_cast<int64_t>(weights.up_rows.size());
  require(stored == spec.width || stored == share.own.count,
          "mlp: up_proj has {} rows, expected {}, or {} of one rank alone", stored, spec.width, share.own.count);
  require(weights.gate_rows.empty() || static_cast<int64_t>(weights.gate_rows.size()) == stored,
          "mlp: gate_proj has {} rows, but up_proj {}", weights.gate_rows.size(), stored);
  const ElementRange own{.first = stored == spec.width ? share.own.first : 0, .count = share.own.count};
  std::vector<Columns> columns;
  for (int64_t first = own.first; first < own.end() && share.sum; first += kMlpLeaf)
    columns.push_back({.first = first, .count = std::min(kMlpLeaf, own.end() - first)});
  const Part gate{"gate_proj", weights.gate, weights.gate_bias};
  const Part up{"up_proj", weights.up, weights.up_bias};
  const Part down{"down_proj", weights.down, weights.down_bias};
  if (spec.gated)
    matrices.gate =
        load_part(gate, stored, hidden_size, spec.has_bias, threads, stored_rows(weights.gate_rows, stored, own), {});
  matrices.up =
      load_part(up, stored, hidden_size, spec.has_bias, threads, stored_rows(weights.up_rows, stored, own), {});
  matrices.down = load_part({down.name, down.matrix, bias_of_down}, hidden_size, stored, spec.has_bias && down_bias,
                            threads, {}, columns);
  return matrices;
}

void MlpMatrices::activate(TensorView inner, TensorView times, const Threads& threads) const {
  const int64_t width = inner.size(1);
  for_each_row(inner.size(0), threads, [&](int64_t row, int) {
    kernels::activate(activation, times.empty() ? nullptr : times.as<float>() + row * width, width,
                      inner.as<float>() + row * width);
  });
}

int64_t MlpMatrices::weights() const {
  int64_t sum = 0;
  for (const Linear* linear : {&gate, &up, &down}) sum += linear->rows() * linear->columns();
  return sum;
}

}  // namespace regard
