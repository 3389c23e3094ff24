#include "layers/oracle.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numbers>

#include "layers/oracle_parts.h"

// Everything below is a loop over numbers, in the order of the data: hidden states, projections, norms and rotation,
// attention, output projection. Nothing is blocked, merged, packed or rounded.
namespace regard {
namespace {

// ---- Projections ----

using oracle_parts::normalize;
using oracle_parts::project;

struct Heads {
  OracleMatrix q;  // [tokens, heads * head_dim]
  OracleMatrix k;  // [tokens, kv_heads * head_dim]
  OracleMatrix v;  // [tokens, kv_heads * v_head_dim]
};

// x [tokens, input_size] -> heads, with bias and clip [POS-1], [POS-20].
Heads project_heads(const AttentionConfig& c, const QkvWeights& w, const OracleMatrix& x) {
  // A fused matrix, and its bias, hold the rows of q, then of k, then of v [PROJ-25].
  const int64_t q_rows = c.num_attention_heads * c.head_dim;
  const int64_t k_rows = c.num_key_value_heads * c.head_dim;
  const int64_t v_rows = c.num_key_value_heads * c.v_head_dim;
  const auto part = [&](int64_t first, int64_t rows, const StoredMatrix& own, std::span<const float> own_bias,
                        std::span<const int64_t> order) {
    if (!c.fused_qkv) return project(x, {own, own_bias, 0, rows, order});
    return project(x, {w.qkv, w.qkv_bias, first, rows, order});
  };
  Heads heads{.q = part(0, q_rows, w.q, w.q_bias, w.q_row_order),
              .k = part(q_rows, k_rows, w.k, w.k_bias, w.k_row_order),
              .v = part(q_rows + k_rows, v_rows, w.v, w.v_bias, {})};
  if (c.clip_qkv) {
    const auto limit = static_cast<double>(*c.clip_qkv);
    for (OracleMatrix* clipped : {&heads.q, &heads.k, &heads.v})
      for (double& number : clipped->numbers) number = std::clamp(number, -limit, limit);
  }
  return heads;
}

// ---- Norms ----

// Every row of x [tokens, heads * width], head by head or all heads together. Gain and bias are [width], or, of all
// heads together or of each head its own, [heads * width].
void normalize_heads(const QKNorm& norm, std::span<const float> weight, std::span<const float> bias, int64_t heads,
                     OracleMatrix& x) {
  const int64_t count = norm.width == NormWidth::all ? x.columns : x.columns / heads;
  const auto own = [&](std::span<const float> numbers, int64_t first) {
    const bool whole = numbers.empty() || !norm.weight_per_head;
    return whole ? numbers : numbers.subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  };
  for (int64_t t = 0; t < x.rows; ++t)
    for (int64_t first = 0; first < x.columns; first += count)
      normalize(norm.kind, norm.eps, own(weight, first), own(bias, first), {x[t] + first, static_cast<size_t>(count)});
}

void normalize_queries_and_keys(const AttentionConfig& c, const AttentionWeights& w, Heads& heads) {
  if (c.use_qk_norm) {
    const QKNorm plain{.kind = NormKind::rms, .eps = c.rms_norm_eps.value_or(1e-6), .has_weight = false};
    normalize_heads(plain, {}, {}, c.num_attention_heads, heads.q);
    normalize_heads(plain, {}, {}, c.num_key_value_heads, heads.k);
  }
  if (c.q_layernorm) normalize_heads(*c.q_layernorm, w.q_norm, w.q_norm_bias, c.num_attention_heads, heads.q);
  if (c.k_layernorm) normalize_heads(*c.k_layernorm, w.k_norm, w.k_norm_bias, c.num_key_value_heads, heads.k);
}

// ---- Rotation ----

// Radians a position of pair i, i = 0 .. rotary_dim/2 - 1 [POS-3], [POS-5], [POS-6], [POS-7].
long double frequency(const RotaryConfig& r, int64_t i) {
  constexpr long double kPi = std::numbers::pi_v<long double>;
  const auto base = static_cast<long double>(r.rope_theta);
  const auto factor = static_cast<long double>(r.factor);
  const auto trained = static_cast<long double>(r.original_max_position_embeddings);
  const auto dim = static_cast<long double>(r.rotary_dim);
  const long double plain = std::pow(base, -2.0L * static_cast<long double>(i) / dim);
  const long double wavelength = 2.0L * kPi / plain;
  switch (r.scaling) {
    case RopeScaling::none:
      return plain;
    case RopeScaling::linear:
      return plain / factor;
    case RopeScaling::llama3: {
      const auto low = static_cast<long double>(r.low_freq_factor);
      const auto high = static_cast<long double>(r.high_freq_factor);
      if (wavelength < trained / high) return plain;
      if (wavelength > trained / low) return plain / factor;
      const long double kept = (trained / wavelength - low) / (high - low);
      return (1.0L - kept) * plain / factor + kept * plain;
    }
    case RopeScaling::yarn: {
      if (factor <= 1.0L) return plain;
      const auto pair_that_turns = [&](double times) {
        return dim / 2.0L * std::log(trained / (2.0L * kPi * static_cast<long double>(times))) / std::log(base);
      };
      long double low = pair_that_turns(r.beta_fast);
      long double high = pair_that_turns(r.beta_slow);
      if (r.truncate) low = std::floor(low);
      if (r.truncate) high = std::ceil(high);
      if (low < 0.0L) low = 0.0L;
      if (high > dim - 1.0L) high = dim - 1.0L;
      if (high - low < 0.001L) high = low + 0.001L;
      const long double stretched = std::clamp((static_cast<long double>(i) - low) / (high - low), 0.0L, 1.0L);
      return stretched * plain / factor + (1.0L - stretched) * plain;
    }
    case RopeScaling::longrope: {
      const bool is_long = r.longrope_factors == LongropeFactors::long_factor;
      const auto& factors = is_long ? r.long_factor : r.short_factor;
      return plain / static_cast<long double>(factors[static_cast<size_t>(i)]);
    }
  }
  return plain;
}

// What cos and sin are multiplied by.
double concentration(const RotaryConfig& r) {
  if (r.attention_factor) return *r.attention_factor;
  const bool scales = r.scaling == RopeScaling::yarn || r.scaling == RopeScaling::longrope;
  if (!scales || r.factor <= 1.0) return 1.0;
  if (r.scaling == RopeScaling::yarn) return 0.1 * std::log(r.factor) + 1.0;
  return std::sqrt(1.0 + std::log(r.factor) / std::log(static_cast<double>(r.original_max_position_embeddings)));
}

// x [tokens, heads * head_dim]: the first rotary_dim elements of every head turn, in pairs [POS-4], [POS-9].
void rotate(const RotaryConfig& r, const OracleMatrix& cos, const OracleMatrix& sin, int64_t head_dim,
            OracleMatrix& x) {
  const int64_t half = r.rotary_dim / 2;
  for (int64_t t = 0; t < x.rows; ++t)
    for (double* head = x[t]; head < x[t] + x.columns; head += head_dim)
      for (int64_t i = 0; i < half; ++i) {
        double& a = r.style == RotaryStyle::half ? head[i] : head[2 * i];
        double& b = r.style == RotaryStyle::half ? head[i + half] : head[2 * i + 1];
        const double turned = a * cos[t][i] - b * sin[t][i];
        b = b * cos[t][i] + a * sin[t][i];
        a = turned;
      }
}

}  // namespace

bool oracle_sees(const AttentionConfig& config, int64_t query, int64_t key, int64_t prefix_end) {
  const int64_t window = config.sliding_window;
  const int64_t chunk = config.attention_chunk_size;
  const bool both_in_prefix = query < prefix_end && key < prefix_end;
  if (config.is_causal && key > query && !both_in_prefix) return false;
  if (config.is_causal && window > 0 && query - key >= window) return false;
  if (!config.is_causal && window > 0 && 2 * std::abs(query - key) > window) return false;
  if (chunk > 0 && key / chunk != query / chunk) return false;
  return true;
}

OracleAttended oracle_attend(const OracleAttendInput& in) {
  const int64_t head_dim = in.queries.columns / in.heads;
  const int64_t v_head_dim = in.values.columns / in.kv_heads;
  const int64_t sinks_per_head = static_cast<int64_t>(in.sinks.size()) / in.heads;
  OracleAttended result{.out = OracleMatrix(in.queries.rows, in.heads * v_head_dim),
                        .lse = OracleMatrix(in.queries.rows, in.heads)};
  std::vector<double> scores(static_cast<size_t>(in.keys.rows));
  for (int64_t query = 0; query < in.queries.rows; ++query) {
    std::vector<int64_t> visible;
    for (int64_t key = 0; key < in.keys.rows; ++key)
      if (in.sees(query, key)) visible.push_back(key);
    for (int64_t head = 0; head < in.heads; ++head) {
      const int64_t kv_head = head / (in.heads / in.kv_heads);
      const double* q = in.queries[query] + head * head_dim;
      const float* sinks = in.sinks.data() + head * sinks_per_head;
      double* out = result.out[query] + head * v_head_dim;

      // 1. Scores, and the largest of them and of the sinks.
      double largest = -std::numeric_limits<double>::infinity();
      for (const int64_t key : visible) {
        const double* k = in.keys[key] + kv_head * head_dim;
        double score = 0;
        for (int64_t d = 0; d < head_dim; ++d) score += q[d] * k[d];
        score *= in.scale;
        if (in.soft_cap != 0.0) score = in.soft_cap * std::tanh(score / in.soft_cap);
        scores[static_cast<size_t>(key)] = score;
        largest = std::max(largest, score);
      }
      for (int64_t i = 0; i < sinks_per_head; ++i) largest = std::max(largest, static_cast<double>(sinks[i]));

      // 2. The denominator of the softmax; each sink is in it once, and has no value.
      double sum = 0;
      for (const int64_t key : visible) sum += std::exp(scores[static_cast<size_t>(key)] - largest);
      for (int64_t i = 0; i < sinks_per_head; ++i) sum += std::exp(static_cast<double>(sinks[i]) - largest);
      result.lse[query][head] = largest + std::log(sum);

      // 3. The weighted sum of the values. Nothing visible: zeros, where the reference averages [MATH-7].
      for (const int64_t key : visible) {
        const double weight = std::exp(scores[static_cast<size_t>(key)] - largest) / sum;
        const double* v = in.values[key] + kv_head * v_head_dim;
        for (int64_t d = 0; d < v_head_dim; ++d) out[d] += weight * v[d];
      }
    }
  }
  return result;
}

OracleOutput oracle(const AttentionConfig& config, const AttentionWeights& weights, const OracleInput& in) {
  const AttentionConfig c = config.validated();
  OracleOutput result;

  // 1. The norm before the projection, of input plus residual [OUT-6].
  OracleMatrix x = in.hidden_states;
  const int64_t tokens = x.rows;
  if (!in.rmsnorm.empty()) {
    for (size_t i = 0; i < in.residual.numbers.size(); ++i) x.numbers[i] += in.residual.numbers[i];
    normalize_heads({.kind = NormKind::rms, .width = NormWidth::all, .eps = *c.rms_norm_eps}, in.rmsnorm, {}, 1, x);
  }

  // 2. Projections, norms, rotation [POS-1]. Values are neither rotated nor normed with the keys.
  Heads heads = project_heads(c, weights.qkv, x);
  if (c.qk_norm_placement == QKNormPlacement::PRE_ROPE) normalize_queries_and_keys(c, weights, heads);
  if (c.rotary_emb) {
    const RotaryConfig& r = *c.rotary_emb;
    result.cos = result.sin = OracleMatrix(tokens, r.rotary_dim / 2);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t i = 0; i < r.rotary_dim / 2; ++i) {
        const int64_t position =
            in.rotary_position_ids.empty() ? in.first_position + t : in.rotary_position_ids[static_cast<size_t>(t)];
        const long double angle = static_cast<long double>(position) * frequency(r, i);
        result.cos[t][i] = static_cast<double>(std::cos(angle)) * concentration(r);
        result.sin[t][i] = static_cast<double>(std::sin(angle)) * concentration(r);
      }
    rotate(r, result.cos, result.sin, c.head_dim, heads.q);
    rotate(r, result.cos, result.sin, c.head_dim, heads.k);
  }
  if (c.qk_norm_placement == QKNormPlacement::POST_ROPE) normalize_queries_and_keys(c, weights, heads);
  if (c.query_position_scale)
    for (int64_t t = 0; t < tokens; ++t) {
      const auto nth = static_cast<double>(in.first_position + t + c.query_position_scale->offset);
      const double growth = std::log(1.0 + std::floor(nth / c.query_position_scale->floor_scale));
      for (int64_t i = 0; i < heads.q.columns; ++i) heads.q[t][i] *= growth * c.query_position_scale->attn_scale + 1.0;
    }
  if (c.v_norm) normalize_heads(*c.v_norm, weights.v_norm, {}, c.num_key_value_heads, heads.v);
  for (double& number : heads.v.numbers) number *= c.value_scale;

  // 3. Attention. Row j of the keys is position j of a cached sequence, or the j-th of these tokens.
  const int64_t first_key = in.cached != nullptr ? 0 : in.first_position;
  const OracleAttended attended =
      oracle_attend({.heads = c.num_attention_heads,
                     .kv_heads = c.num_key_value_heads,
                     .queries = heads.q,
                     .keys = in.cached != nullptr ? in.cached->keys : heads.k,
                     .values = in.cached != nullptr ? in.cached->values : heads.v,
                     .scale = c.softmax_scale,
                     .soft_cap = c.logit_soft_cap,
                     .sinks = weights.sinks,
                     .sees = [&](int64_t query, int64_t key) {
                       return oracle_sees(c, in.first_position + query, first_key + key, in.first_position + in.prefix);
                     }});

  // 4. The output projection.
  result.hidden_states = project(attended.out, {weights.output, weights.output_bias, 0, weights.output.rows(), {}});
  result.queries = heads.q;
  result.key_values = {.keys = heads.k, .values = heads.v};
  result.attended = attended.out;
  result.lse = attended.lse;
  return result;
}

}  // namespace regard
