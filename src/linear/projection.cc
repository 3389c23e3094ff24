#include "regard/projection.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/workspace.h"
#include "tensor/fail.h"

namespace regard {
namespace {

void check_bias(const char* name, const std::vector<float>& bias, int64_t rows, bool expected) {
  require(bias.empty() || static_cast<int64_t>(bias.size()) == rows,
          "projection: bias of {} has {} numbers, expected {}", name, bias.size(), rows);
  require(bias.empty() != expected, "projection: bias of {} is {}, but the config says {}", name,
          bias.empty() ? "missing" : "given", expected ? "there is one" : "there is none");
}

void check_no_nan(const char* name, std::span<const float> bias) {
  for (const float value : bias) require(!std::isnan(value), "projection: bias of {} holds NaN", name);
}

void check_shape(const char* name, const WeightView& weight, int64_t rows, int64_t columns) {
  require(weight.rows == rows && weight.columns == columns,
          "projection: weight of {} has shape [{}, {}], expected [{}, {}]", name, weight.rows, weight.columns, rows,
          columns);
}

void check_heads(const char* name, std::span<const int64_t> heads, int64_t count) {
  for (const int64_t head : heads)
    require(head >= -1 && head < count, "projection: the shard of {} names head {}, expected -1 to {}", name, head,
            count - 1);
}

// What a weight's rows are to become: heads of so many rows, some or all of them.
struct HeadRows {
  const char* name;
  int64_t heads;  // of the checkpoint
  int64_t width;
  std::span<const int64_t> order;  // the stored row of each row of all heads; empty: as stored
  std::span<const int64_t> shard;  // the heads wanted, -1 for zeros; empty: all

  [[nodiscard]] int64_t rows() const { return heads * width; }
};

// The stored row of each row that is wanted, -1 for zeros; empty: all as stored.
std::vector<int64_t> stored_rows(const HeadRows& wanted) {
  if (wanted.shard.empty()) return {wanted.order.begin(), wanted.order.end()};
  std::vector<int64_t> rows;
  for (const int64_t head : wanted.shard)
    for (int64_t i = 0; i < wanted.width; ++i) {
      const int64_t row = head * wanted.width + i;
      rows.push_back(head < 0 ? -1 : wanted.order.empty() ? row : wanted.order[static_cast<size_t>(row)]);
    }
  return rows;
}

Linear load_heads(const HeadRows& wanted, const WeightView& weight, int64_t columns, const std::vector<float>& bias,
                  bool has_bias, const Threads& threads) {
  check_shape(wanted.name, weight, wanted.rows(), columns);
  check_bias(wanted.name, bias, wanted.rows(), has_bias);
  check_heads(wanted.name, wanted.shard, wanted.heads);
  require(wanted.order.empty() || static_cast<int64_t>(wanted.order.size()) == wanted.rows(),
          "projection: the order of {} rows of {} has {} entries", wanted.rows(), wanted.name, wanted.order.size());
  for (const int64_t row : wanted.order)
    require(row >= 0 && row < wanted.rows(), "projection: the order of rows of {} names row {}, expected 0 to {}",
            wanted.name, row, wanted.rows() - 1);
  const std::vector<int64_t> rows = stored_rows(wanted);
  Linear linear{.weight = PackedMatrix::pack(weight, threads, rows), .bias = {}};
  if (rows.empty()) linear.bias = bias;
  if (!bias.empty())
    for (const int64_t row : rows) linear.bias.push_back(row < 0 ? 0.0F : bias[static_cast<size_t>(row)]);
  check_no_nan(wanted.name, linear.bias);
  return linear;
}

// The rows of q, k and v of a fused checkpoint, which lie one after the other [PROJ-25].
QkvWeights split_fused(const QkvWeights& fused, int64_t q_rows, int64_t k_rows, int64_t v_rows) {
  require(fused.qkv.rows == q_rows + k_rows + v_rows,
          "projection: weight of Wqkv has {} rows, expected {} (q {}, k {}, v {})", fused.qkv.rows,
          q_rows + k_rows + v_rows, q_rows, k_rows, v_rows);
  require(fused.qkv_bias.empty() || static_cast<int64_t>(fused.qkv_bias.size()) == fused.qkv.rows,
          "projection: bias of Wqkv has {} numbers, expected {}", fused.qkv_bias.size(), fused.qkv.rows);
  QkvWeights split = fused;
  const auto take = [&](int64_t first, int64_t count, WeightView& weight, std::vector<float>& bias) {
    weight = fused.qkv.row_range(first, count);
    if (!fused.qkv_bias.empty()) bias.assign(fused.qkv_bias.begin() + first, fused.qkv_bias.begin() + first + count);
  };
  take(0, q_rows, split.q, split.q_bias);
  take(q_rows, k_rows, split.k, split.k_bias);
  take(q_rows + k_rows, v_rows, split.v, split.v_bias);
  return split;
}

void clamp_all(TensorView x, float limit) {
  for (float& value : x.elements<float>()) value = value < -limit ? -limit : value > limit ? limit : value;
}

void check_input(ConstTensorView x) {
  require(x.shape().rank() == 2 && (x.size(1) <= 1 || x.stride(1) == 1),
          "projection: input has shape {}, expected [tokens, columns], dense rows", x.shape());
  require(x.dtype() == DType::f32 || x.dtype() == DType::bf16 || x.dtype() == DType::f16,
          "projection: input has dtype {}, expected f32, bf16 or f16", name_of(x.dtype()));
}

kernels::Product product_of(const PackedMatrix& weight, ConstTensorView x, TensorView out) {
  const Shape expected{x.size(0), weight.rows()};
  require(out.shape() == expected, "projection: output has shape {}, expected {}", out.shape(), expected);
  return {.weights = weight.panel(),
          .columns = weight.rows(),
          .bias = nullptr,
          .out = out.as<float>(),
          .out_stride = out.stride(0)};
}

void multiply(ConstTensorView x, std::span<const kernels::Product> products, Workspace& workspace) {
  kernels::matmul({.data = x.data(), .dtype = x.dtype(), .rows = x.size(0), .depth = x.size(1), .stride = x.stride(0)},
                  products, workspace.memory().matmul, workspace.threads(), workspace.options());
}

}  // namespace

void apply(std::span<const Linear* const> layers, ConstTensorView x, std::span<const TensorView> outs,
           Workspace& workspace) {
  constexpr size_t kMost = 8;
  require(layers.size() == outs.size() && layers.size() <= kMost,
          "projection: {} layers have {} outputs, expected as many, at most {}", layers.size(), outs.size(), kMost);
  check_input(x);
  std::array<kernels::Product, kMost> products;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Linear& layer = *layers[i];
    require(layer.weight.columns() == x.size(1), "projection: input has {} columns, expected {}", x.size(1),
            layer.weight.columns());
    products[i] = product_of(layer.weight, x, outs[i]);
    products[i].bias = layer.bias.empty() ? nullptr : layer.bias.data();
  }
  multiply(x, std::span(products.data(), layers.size()), workspace);
}

void apply_columns(const PackedMatrix& weight, ConstTensorView x, int64_t first, int64_t count, TensorView out,
                   Workspace& workspace) {
  check_input(x);
  require(first >= 0 && count >= 1 && first + count <= weight.columns() && weight.columns() == x.size(1),
          "projection: columns {} to {} are asked for, of an input with {} and a weight with {}", first,
          first + count - 1, x.size(1), weight.columns());
  kernels::Product product = product_of(weight, x, out);
  product.weights = product.weights.from(0, first);
  multiply(x.slice(1, first, count), {&product, 1}, workspace);
}

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
  const QkvWeights parts = config.fused_qkv ? split_fused(weights, q.rows(), k.rows(), v.rows()) : weights;
  const int64_t columns = config.input_size();
  QkvProjection projection;
  projection.clip_ = config.clip_qkv;
  projection.q_ = load_heads(q, parts.q, columns, parts.q_bias, config.qkv_bias, threads);
  projection.k_ = load_heads(k, parts.k, columns, parts.k_bias, config.qkv_bias, threads);
  projection.v_ = load_heads(v, parts.v, columns, parts.v_bias, config.qkv_bias, threads);
  return projection;
}

void QkvProjection::forward(ConstTensorView x, TensorView q, TensorView k, TensorView v, Workspace& workspace) const {
  const std::array<const Linear*, 3> layers = {&q_, &k_, &v_};
  const std::array<TensorView, 3> outs = {q, k, v};
  apply(layers, x, outs, workspace);
  if (!clip_) return;
  for (const TensorView& out : outs) clamp_all(out, *clip_);
}

OutputProjection OutputProjection::load(const WeightView& weight, std::vector<float> bias,
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
  projection.linear_ = {.weight = PackedMatrix::pack(weight, threads, {}, columns), .bias = std::move(bias)};
  return projection;
}

void OutputProjection::forward(ConstTensorView x, TensorView out, Workspace& workspace) const {
  const std::array<const Linear*, 1> layers = {&linear_};
  const std::array<TensorView, 1> outs = {out};
  apply(layers, x, outs, workspace);
}

}  // namespace regard
