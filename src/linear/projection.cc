#include "regard/projection.h"

#include <array>
#include <cmath>

#include "tensor/fail.h"

namespace regard {
namespace {

void check_bias(const char* name, std::span<const float> bias, int64_t rows, bool expected) {
  require(bias.empty() || static_cast<int64_t>(bias.size()) == rows,
          "projection: bias of {} has {} numbers, expected {}", name, bias.size(), rows);
  require(bias.empty() != expected, "projection: bias of {} is {}, but the config says {}", name,
          bias.empty() ? "missing" : "given", expected ? "there is one" : "there is none");
}

void check_no_nan(const char* name, std::span<const float> bias) {
  for (const float value : bias) require(!std::isnan(value), "projection: bias of {} holds NaN", name);
}

void check_shape(const char* name, const StoredMatrix& weight, int64_t rows, int64_t columns) {
  require(weight.rows() == rows && weight.columns() == columns,
          "projection: weight of {} has shape [{}, {}], expected [{}, {}]", name, weight.rows(), weight.columns(), rows,
          columns);
}

void check_heads(const char* name, std::span<const int64_t> heads, int64_t count) {
  for (const int64_t head : heads)
    require(head >= -1 && head < count, "projection: the shard of {} names head {}, expected -1 to {}", name, head,
            count - 1);
}

// A projection's rows: heads of so many rows, some or all of them.
struct HeadRows {
  const char* name;
  int64_t heads;  // of the checkpoint
  int64_t width;
  std::span<const int64_t> order;  // the stored row of each row of all heads; empty: as stored
  std::span<const int64_t> shard;  // the heads wanted, -1 for zeros; empty: all

  [[nodiscard]] int64_t rows() const { return heads * width; }
};

// The stored row of each row that is wanted, -1 for zeros, where the first head's first row is stored row `first`.
std::vector<int64_t> stored_rows(const HeadRows& wanted, int64_t first) {
  std::vector<int64_t> rows;
  const auto add_head = [&](int64_t head) {
    for (int64_t i = 0; i < wanted.width; ++i) {
      const int64_t row = head * wanted.width + i;
      rows.push_back(head < 0 ? -1 : first + (wanted.order.empty() ? row : wanted.order[static_cast<size_t>(row)]));
    }
  };
  for (const int64_t head : wanted.shard) add_head(head);
  for (int64_t head = 0; head < wanted.heads && wanted.shard.empty(); ++head) add_head(head);
  return rows;
}

// From rows `first` on of a stored matrix and its bias.
Linear load_heads(const HeadRows& wanted, const StoredMatrix& matrix, std::span<const float> bias, int64_t first,
                  const Threads& threads) {
  check_heads(wanted.name, wanted.shard, wanted.heads);
  require(wanted.order.empty() || static_cast<int64_t>(wanted.order.size()) == wanted.rows(),
          "projection: the order of {} rows of {} has {} entries", wanted.rows(), wanted.name, wanted.order.size());
  for (const int64_t row : wanted.order)
    require(row >= 0 && row < wanted.rows(), "projection: the order of rows of {} names row {}, expected 0 to {}",
            wanted.name, row, wanted.rows() - 1);
  const std::vector<int64_t> rows = stored_rows(wanted, first);
  if (!bias.empty())
    for (const int64_t row : rows)
      if (row >= 0) check_no_nan(wanted.name, bias.subspan(static_cast<size_t>(row), 1));
  return Linear::load(matrix, bias, threads, rows);
}

void clamp_all(TensorView x, float limit) {
  for (float& value : x.elements<float>()) value = value < -limit ? -limit : value > limit ? limit : value;
}

}  // namespace

QkvProjection QkvProjection::load(const QkvWeights& weights, const AttentionConfig& config, const Threads& threads,
                                  const HeadShard& shard) {
  const HeadRows q{.name = "q_proj",
                   .heads = config.num_attention_heads,
                   .width = config.head_dim,
                   .order = weights.q_row_order,
                   .shard = shard.q_heads};
  const HeadRows k{.name = "k_proj",
                   .heads = config.num_key_value_heads,
                   .width = config.head_dim,
                   .order = weights.k_row_order,
                   .shard = shard.kv_heads};
  const HeadRows v{.name = "v_proj",
                   .heads = config.num_key_value_heads,
                   .width = config.v_head_dim,
                   .order = {},
                   .shard = shard.kv_heads};
  require(weights.qkv.empty() != config.fused_qkv, "projection: fused_qkv is {}, but the checkpoint {} Wqkv",
          config.fused_qkv, weights.qkv.empty() ? "has no" : "has a");
  const int64_t columns = config.input_size();
  QkvProjection projection;
  projection.clip_ = config.clip_qkv;
  if (config.fused_qkv) {
    // The rows of q, k and v lie one after the other [PROJ-25].
    require(weights.qkv.rows() == q.rows() + k.rows() + v.rows(),
            "projection: weight of Wqkv has {} rows, expected {} (q {}, k {}, v {})", weights.qkv.rows(),
            q.rows() + k.rows() + v.rows(), q.rows(), k.rows(), v.rows());
    check_shape("Wqkv", weights.qkv, weights.qkv.rows(), columns);
    check_bias("Wqkv", weights.qkv_bias, weights.qkv.rows(), config.qkv_bias);
    projection.q_ = load_heads(q, weights.qkv, weights.qkv_bias, 0, threads);
    projection.k_ = load_heads(k, weights.qkv, weights.qkv_bias, q.rows(), threads);
    projection.v_ = load_heads(v, weights.qkv, weights.qkv_bias, q.rows() + k.rows(), threads);
    return projection;
  }
  const auto load = [&](const HeadRows& wanted, const StoredMatrix& matrix, std::span<const float> bias) {
    check_shape(wanted.name, matrix, wanted.rows(), columns);
    check_bias(wanted.name, bias, wanted.rows(), config.qkv_bias);
    return load_heads(wanted, matrix, bias, 0, threads);
  };
  projection.q_ = load(q, weights.q, weights.q_bias);
  projection.k_ = load(k, weights.k, weights.k_bias);
  projection.v_ = load(v, weights.v, weights.v_bias);
  return projection;
}

void QkvProjection::forward(ConstTensorView x, TensorView q, TensorView k, TensorView v, Workspace& workspace) const {
  std::array<const Linear*, 3> layers = {};
  std::array<TensorView, 3> outs;
  size_t count = 0;
  for (const auto& [layer, out] : {std::pair{&q_, q}, {&k_, k}, {&v_, v}}) {
    if (out.empty()) continue;
    layers[count] = layer;
    outs[count++] = out;
  }
  apply(std::span(layers).first(count), x, std::span(outs).first(count), workspace);
  if (!clip_) return;
  for (const TensorView& out : std::span(outs).first(count)) clamp_all(out, *clip_);
}

OutputProjection OutputProjection::load(const StoredMatrix& weight, std::span<const float> bias,
                                        const AttentionConfig& config, const Threads& threads, const HeadShard& shard) {
  const char* name = config.o_proj_layer_name.c_str();
  check_shape(name, weight, config.hidden_size, config.num_attention_heads * config.v_head_dim);
  check_bias(name, bias, config.hidden_size, config.o_bias);
  check_no_nan(name, bias);
  check_heads(name, shard.q_heads, config.num_attention_heads);
  std::vector<Columns> columns;
  for (const int64_t head : shard.q_heads)
    columns.push_back({.first = head < 0 ? -1 : head * config.v_head_dim, .count = config.v_head_dim});
  OutputProjection projection;
  projection.linear_ = Linear::load(weight, bias, threads, {}, columns);
  return projection;
}

void OutputProjection::forward(ConstTensorView x, TensorView out, Workspace& workspace) const {
  const std::array<const Linear*, 1> layers = {&linear_};
  const std::array<TensorView, 1> outs = {out};
  apply(layers, x, outs, workspace);
}

}  // namespace regard
