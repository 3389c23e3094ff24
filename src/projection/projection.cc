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
  for (const float value : bias) require(!std::isnan(value), "projection: bias of {} holds NaN", name);
}

Linear load_linear(const char* name, const WeightView& weight, int64_t rows, int64_t columns, std::vector<float> bias,
                   bool has_bias, std::span<const int64_t> row_order, const Threads& threads) {
  require(weight.rows == rows && weight.columns == columns,
          "projection: weight of {} has shape [{}, {}], expected [{}, {}]", name, weight.rows, weight.columns, rows,
          columns);
  check_bias(name, bias, rows, has_bias);
  PackedMatrix packed = PackedMatrix::pack(weight, threads, row_order);  // checks the order
  if (!row_order.empty() && !bias.empty()) {
    std::vector<float> ordered(bias.size());
    for (size_t row = 0; row < bias.size(); ++row) ordered[row] = bias[static_cast<size_t>(row_order[row])];
    bias = std::move(ordered);
  }
  return {.weight = std::move(packed), .bias = std::move(bias)};
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

QkvProjection QkvProjection::load(const QkvWeights& weights, const AttentionConfig& config, const Threads& threads) {
  const int64_t q_rows = config.num_attention_heads * config.head_dim;
  const int64_t k_rows = config.num_key_value_heads * config.head_dim;
  const int64_t v_rows = config.num_key_value_heads * config.v_head_dim;
  require(weights.qkv.empty() != config.fused_qkv, "projection: fused_qkv is {}, but the checkpoint {} Wqkv",
          config.fused_qkv, weights.qkv.empty() ? "has no" : "has a");
  const QkvWeights parts = config.fused_qkv ? split_fused(weights, q_rows, k_rows, v_rows) : weights;
  const int64_t columns = config.input_size();
  QkvProjection projection;
  projection.clip_ = config.clip_qkv;
  projection.q_ =
      load_linear("q_proj", parts.q, q_rows, columns, parts.q_bias, config.qkv_bias, parts.q_row_order, threads);
  projection.k_ =
      load_linear("k_proj", parts.k, k_rows, columns, parts.k_bias, config.qkv_bias, parts.k_row_order, threads);
  projection.v_ = load_linear("v_proj", parts.v, v_rows, columns, parts.v_bias, config.qkv_bias, {}, threads);
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
                                        const AttentionConfig& config, const Threads& threads) {
  OutputProjection projection;
  projection.linear_ =
      load_linear(config.o_proj_layer_name.c_str(), weight, config.hidden_size,
                  config.num_attention_heads * config.v_head_dim, std::move(bias), config.o_bias, {}, threads);
  return projection;
}

void OutputProjection::forward(ConstTensorView x, TensorView out, Workspace& workspace) const {
  const std::array<const Linear*, 1> layers = {&linear_};
  const std::array<TensorView, 1> outs = {out};
  apply(layers, x, outs, workspace);
}

}  // namespace regard
