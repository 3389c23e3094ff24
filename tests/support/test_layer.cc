#include "support/test_layer.h"

#include <algorithm>

#include "support/numbers.h"

namespace regard::test {
namespace {

WeightView matrix(const std::vector<float>& values, int64_t columns) {
  const auto bytes = std::as_bytes(std::span(values));
  return WeightView::make(WeightType::f32, static_cast<int64_t>(values.size()) / columns, columns, bytes);
}

// Row r has a 1 in column first + r.
std::vector<float> picking_rows(int64_t rows, int64_t columns, int64_t first) {
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (int64_t row = 0; row < rows; ++row) values[static_cast<size_t>(row * columns + first + row)] = 1.0F;
  return values;
}

void add_norm(const std::optional<QKNorm>& norm, int64_t heads, int64_t width, Numbers& numbers,
              std::vector<float>& weight, std::vector<float>* bias) {
  if (!norm) return;
  const int64_t count = norm->width == NormWidth::all || norm->weight_per_head ? heads * width : width;
  if (norm->has_weight) weight = numbers.floats(count);
  if (norm->kind == NormKind::layer_norm && bias != nullptr) *bias = numbers.floats(count);
}

}  // namespace

AttentionWeights TestLayer::views() const {
  const AttentionConfig c = config.validated();
  AttentionWeights all = weights;
  all.qkv.q = matrix(q, c.input_size());
  all.qkv.k = matrix(k, c.input_size());
  all.qkv.v = matrix(v, c.input_size());
  all.output = matrix(output, c.num_attention_heads * c.v_head_dim);
  return all;
}

Attention TestLayer::load(int threads) const { return Attention::load(views(), config, Threads(threads)); }

TestLayer random_layer(const AttentionConfig& config, uint64_t seed) {
  const AttentionConfig c = config.validated();
  const int64_t q_rows = c.num_attention_heads * c.head_dim;
  const int64_t k_rows = c.num_key_value_heads * c.head_dim;
  const int64_t v_rows = c.num_key_value_heads * c.v_head_dim;
  const int64_t attended = c.num_attention_heads * c.v_head_dim;
  Numbers numbers(seed);
  TestLayer layer{.config = c,
                  .q = numbers.floats(q_rows * c.input_size()),
                  .k = numbers.floats(k_rows * c.input_size()),
                  .v = numbers.floats(v_rows * c.input_size()),
                  .output = numbers.floats(c.hidden_size * attended)};
  AttentionWeights& weights = layer.weights;
  if (c.qkv_bias) {
    weights.qkv.q_bias = numbers.floats(q_rows);
    weights.qkv.k_bias = numbers.floats(k_rows);
    weights.qkv.v_bias = numbers.floats(v_rows);
  }
  if (c.o_bias) weights.output_bias = numbers.floats(c.hidden_size);
  add_norm(c.q_layernorm, c.num_attention_heads, c.head_dim, numbers, weights.q_norm, &weights.q_norm_bias);
  add_norm(c.k_layernorm, c.num_key_value_heads, c.head_dim, numbers, weights.k_norm, &weights.k_norm_bias);
  add_norm(c.v_norm, c.num_key_value_heads, c.v_head_dim, numbers, weights.v_norm, nullptr);
  weights.sinks = numbers.floats(c.num_attention_heads * c.learned_sinks_size);
  return layer;
}

TestLayer transparent_layer(AttentionConfig config) {
  if (config.v_head_dim == 0) config.v_head_dim = config.head_dim;
  const int64_t q_rows = config.num_attention_heads * config.head_dim;
  const int64_t k_rows = config.num_key_value_heads * config.head_dim;
  const int64_t v_rows = config.num_key_value_heads * config.v_head_dim;
  const int64_t attended = config.num_attention_heads * config.v_head_dim;
  config.hidden_size = std::max(q_rows + k_rows + v_rows, attended);
  const int64_t width = config.hidden_size;
  TestLayer layer{.config = config,
                  .q = picking_rows(q_rows, width, 0),
                  .k = picking_rows(k_rows, width, q_rows),
                  .v = picking_rows(v_rows, width, q_rows + k_rows),
                  .output = picking_rows(attended, attended, 0)};
  layer.output.resize(static_cast<size_t>(width * attended));
  return layer;
}

Tensor hidden_rows(const AttentionConfig& config, const std::vector<float>& q, const std::vector<float>& k,
                   const std::vector<float>& v) {
  const auto tokens = static_cast<int64_t>(q.size()) / (config.num_attention_heads * config.head_dim);
  Tensor hidden(DType::f32, {tokens, config.hidden_size});
  for (int64_t token = 0; token < tokens; ++token) {
    float* out = hidden.view()[token].as<float>();
    for (const auto* part : {&q, &k, &v}) {
      const int64_t width = static_cast<int64_t>(part->size()) / tokens;
      out = std::copy_n(part->data() + token * width, width, out);
    }
  }
  return hidden;
}

std::vector<float> attended_heads(const AttentionConfig& config, const Tensor& hidden_states) {
  const int64_t width = config.num_attention_heads * config.v_head_dim;
  std::vector<float> heads;
  for (int64_t token = 0; token < hidden_states.shape()[0]; ++token) {
    const auto row = hidden_states.view()[token].elements<float>();
    heads.insert(heads.end(), row.begin(), row.begin() + width);
  }
  return heads;
}

}  // namespace regard::test
