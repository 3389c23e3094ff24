#include "support/plain_f32.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace regard::test {
namespace {

using Floats = std::vector<float>;

Floats to_floats(const OracleMatrix& matrix) { return {matrix.numbers.begin(), matrix.numbers.end()}; }

OracleMatrix to_matrix(const Floats& numbers, int64_t rows) {
  OracleMatrix matrix(rows, static_cast<int64_t>(numbers.size()) / rows);
  matrix.numbers.assign(numbers.begin(), numbers.end());
  return matrix;
}

float dot(const float* a, const float* b, int64_t count, int order) {
  const int64_t start = count * order / kOrders;
  float sum = 0;
  for (int64_t i = start; i < count; ++i) sum += a[i] * b[i];
  for (int64_t i = 0; i < start; ++i) sum += a[i] * b[i];
  return sum;
}

// x [tokens, columns] -> [tokens, rows]: stored rows first + row_order[r], or first + r.
Floats project(const Floats& x, int64_t tokens, const StoredMatrix& weight, int64_t first, int64_t rows,
               std::span<const float> bias, std::span<const int64_t> row_order, int order) {
  const int64_t columns = weight.columns();
  Floats out(static_cast<size_t>(tokens * rows));
  Floats row(static_cast<size_t>(columns));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t source = first + (row_order.empty() ? r : row_order[static_cast<size_t>(r)]);
    decode_row(weight, source, row);
    for (int64_t t = 0; t < tokens; ++t) {
      const float sum = dot(x.data() + t * columns, row.data(), columns, order);
      out[static_cast<size_t>(t * rows + r)] = sum + (bias.empty() ? 0.0F : bias[static_cast<size_t>(source)]);
    }
  }
  return out;
}

void normalize(const QKNorm& norm, std::span<const float> weight, std::span<const float> bias, std::span<float> x) {
  const auto count = static_cast<float>(x.size());
  float mean = 0;
  if (norm.kind == NormKind::layer_norm) {
    for (const float number : x) mean += number;
    mean /= count;
  }
  float squares = 0;
  for (const float number : x) squares += (number - mean) * (number - mean);
  const float factor = 1.0F / std::sqrt(squares / count + static_cast<float>(norm.eps));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = (x[i] - mean) * factor;
    if (!weight.empty()) x[i] *= weight[i] + (norm.kind == NormKind::rms_plus_one ? 1.0F : 0.0F);
    if (!bias.empty()) x[i] += bias[i];
  }
}

void normalize_heads(const QKNorm& norm, std::span<const float> weight, std::span<const float> bias, int64_t heads,
                     int64_t width, Floats& x) {
  const auto count = static_cast<size_t>(norm.width == NormWidth::all ? heads * width : width);
  // Weights of each head's own repeat with every token.
  const auto own = [&](std::span<const float> numbers, size_t first) {
    return numbers.empty() || !norm.weight_per_head ? numbers : numbers.subspan(first % numbers.size(), count);
  };
  for (size_t first = 0; first < x.size(); first += count)
    normalize(norm, own(weight, first), own(bias, first), std::span(x).subspan(first, count));
}

// x [tokens, width], heads of head_dim
void rotate(const RotaryConfig& rotary, const OracleOutput& exact, int64_t width, int64_t head_dim, Floats& x) {
  const int64_t half = rotary.rotary_dim / 2;
  const bool halves = rotary.style == RotaryStyle::half;
  for (int64_t at = 0; at < static_cast<int64_t>(x.size()); at += head_dim)
    for (int64_t i = 0; i < half; ++i) {
      const auto cos = static_cast<float>(exact.cos[at / width][i]);
      const auto sin = static_cast<float>(exact.sin[at / width][i]);
      float& a = x[static_cast<size_t>(at + (halves ? i : 2 * i))];
      float& b = x[static_cast<size_t>(at + (halves ? i + half : 2 * i + 1))];
      const float turned = a * cos - b * sin;
      b = b * cos + a * sin;
      a = turned;
    }
}

// A key that a query sees.
struct Visible {
  float score;
  const float* value;
};

}  // namespace

int orders_for(int64_t rows) { return static_cast<int>(std::clamp<int64_t>(400 / rows, 1, kOrders)); }

PlainAttended plain_attend(const OracleAttendInput& in, int order) {
  const int64_t head_dim = in.queries.columns / in.heads;
  const int64_t v_head_dim = in.values.columns / in.kv_heads;
  const int64_t sinks_per_head = static_cast<int64_t>(in.sinks.size()) / in.heads;
  const Floats queries = to_floats(in.queries);
  const Floats keys = to_floats(in.keys);
  const Floats values = to_floats(in.values);
  const auto cap = static_cast<float>(in.soft_cap);
  PlainAttended result;
  result.out.resize(static_cast<size_t>(in.queries.rows * in.heads * v_head_dim));
  result.out_sensitivity.resize(result.out.size());
  std::vector<Visible> visible;
  for (int64_t row = 0; row < in.queries.rows * in.heads; ++row) {
    const int64_t query = row / in.heads;
    const int64_t head = row % in.heads;
    const int64_t kv_head = head / (in.heads / in.kv_heads);
    const float* sinks = in.sinks.data() + head * sinks_per_head;
    float largest = -std::numeric_limits<float>::infinity();
    visible.clear();
    for (int64_t key = 0; key < in.keys.rows; ++key) {
      if (!in.sees(query, key)) continue;
      const float* q = queries.data() + row * head_dim;
      const float* k = keys.data() + key * in.keys.columns + kv_head * head_dim;
      float score = dot(q, k, head_dim, order) * static_cast<float>(in.scale);
      if (cap != 0.0F) score = cap * std::tanh(score / cap);
      visible.push_back({.score = score, .value = values.data() + key * in.values.columns + kv_head * v_head_dim});
      largest = std::max(largest, visible.back().score);
    }
    for (int64_t i = 0; i < sinks_per_head; ++i) largest = std::max(largest, sinks[i]);
    float sum = 0;
    for (const Visible& key : visible) sum += std::exp(key.score - largest);
    for (int64_t i = 0; i < sinks_per_head; ++i) sum += std::exp(sinks[i] - largest);
    const float lse = largest + std::log(sum);
    result.lse.push_back(lse);
    float lse_sensitivity = std::fabs(lse);
    for (const Visible& key : visible) {
      const float weight = std::exp(key.score - largest) / sum;
      lse_sensitivity += weight * (1.0F + std::fabs(key.score));
      for (int64_t d = 0; d < v_head_dim; ++d) {
        const auto at = static_cast<size_t>(row * v_head_dim + d);
        result.out[at] += weight * key.value[d];
        result.out_sensitivity[at] += weight * std::fabs(key.value[d]) * (1.0F + std::fabs(key.score));
      }
    }
    result.lse_sensitivity.push_back(lse_sensitivity);
  }
  return result;
}

PlainOutput plain_layer(const AttentionConfig& config, const AttentionWeights& weights, const OracleInput& in,
                        const OracleOutput& exact, int order) {
  const AttentionConfig c = config.validated();
  const QkvWeights& w = weights.qkv;
  const int64_t tokens = in.hidden_states.rows;
  const int64_t q_width = c.num_attention_heads * c.head_dim;
  const int64_t k_width = c.num_key_value_heads * c.head_dim;
  const int64_t v_width = c.num_key_value_heads * c.v_head_dim;

  Floats x = to_floats(in.hidden_states);
  if (!in.rmsnorm.empty()) {
    for (size_t i = 0; i < in.residual.numbers.size(); ++i) x[i] += static_cast<float>(in.residual.numbers[i]);
    normalize_heads({.eps = *c.rms_norm_eps}, in.rmsnorm, {}, 1, c.input_size(), x);
  }
  const auto part = [&](int64_t first, int64_t rows, const StoredMatrix& own, const Floats& own_bias,
                        std::span<const int64_t> row_order) {
    if (!c.fused_qkv) return project(x, tokens, own, 0, rows, own_bias, row_order, order);
    return project(x, tokens, w.qkv, first, rows, w.qkv_bias, row_order, order);
  };
  Floats q = part(0, q_width, w.q, w.q_bias, w.q_row_order);
  Floats k = part(q_width, k_width, w.k, w.k_bias, w.k_row_order);
  Floats v = part(q_width + k_width, v_width, w.v, w.v_bias, {});
  if (c.clip_qkv)
    for (Floats* clipped : {&q, &k, &v})
      for (float& number : *clipped) number = std::clamp(number, -*c.clip_qkv, *c.clip_qkv);

  const auto norm = [&] {
    const QKNorm plain{.eps = c.rms_norm_eps.value_or(1e-6)};
    if (c.use_qk_norm) normalize_heads(plain, {}, {}, c.num_attention_heads, c.head_dim, q);
    if (c.use_qk_norm) normalize_heads(plain, {}, {}, c.num_key_value_heads, c.head_dim, k);
    if (c.q_layernorm)
      normalize_heads(*c.q_layernorm, weights.q_norm, weights.q_norm_bias, c.num_attention_heads, c.head_dim, q);
    if (c.k_layernorm)
      normalize_heads(*c.k_layernorm, weights.k_norm, weights.k_norm_bias, c.num_key_value_heads, c.head_dim, k);
  };
  if (c.qk_norm_placement == QKNormPlacement::PRE_ROPE) norm();
  if (c.rotary_emb) rotate(*c.rotary_emb, exact, q_width, c.head_dim, q);
  if (c.rotary_emb) rotate(*c.rotary_emb, exact, k_width, c.head_dim, k);
  if (c.qk_norm_placement == QKNormPlacement::POST_ROPE) norm();
  if (c.query_position_scale)
    for (size_t i = 0; i < q.size(); ++i) {
      const int64_t position = in.first_position + static_cast<int64_t>(i) / q_width;
      const float turns = std::floor(static_cast<float>(position + c.query_position_scale->offset) /
                                     static_cast<float>(c.query_position_scale->floor_scale));
      q[i] *= std::log(1.0F + turns) * static_cast<float>(c.query_position_scale->attn_scale) + 1.0F;
    }
  if (c.v_norm) normalize_heads(*c.v_norm, weights.v_norm, {}, c.num_key_value_heads, c.v_head_dim, v);
  for (float& number : v) number *= static_cast<float>(c.value_scale);

  const int64_t first_key = in.cached != nullptr ? 0 : in.first_position;
  const PlainAttended attended = plain_attend(
      {.heads = c.num_attention_heads,
       .kv_heads = c.num_key_value_heads,
       .queries = to_matrix(q, tokens),
       .keys = in.cached != nullptr ? in.cached->keys : to_matrix(k, tokens),
       .values = in.cached != nullptr ? in.cached->values : to_matrix(v, tokens),
       .scale = c.softmax_scale,
       .soft_cap = c.logit_soft_cap,
       .sinks = weights.sinks,
       .sees =
           [&](int64_t query, int64_t key) {
             return oracle_sees(c, in.first_position + query, first_key + key, in.first_position + in.prefix);
           }},
      order);
  return {.hidden_states =
              project(attended.out, tokens, weights.output, 0, weights.output.rows(), weights.output_bias, {}, order),
          .keys = k,
          .values = v,
          .attended = attended};
}

}  // namespace regard::test
