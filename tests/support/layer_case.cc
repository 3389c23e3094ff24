#include "support/layer_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ostream>

#include "support/random_weight.h"

namespace regard::test {
namespace {

bool one_in(int times) { return *rc::gen::inRange(0, times) == times - 1; }

RotaryConfig any_rotary(int64_t head_dim) {
  RotaryConfig rotary;
  rotary.style = *rc::gen::element(RotaryStyle::half, RotaryStyle::interleaved);
  rotary.rotary_dim = one_in(3) ? 2 * *rc::gen::inRange<int64_t>(1, head_dim / 2 + 1) : head_dim / 2 * 2;
  rotary.rope_theta = *rc::gen::element(10000.0, 500000.0, 100.0);
  rotary.scaling = *rc::gen::element(RopeScaling::none, RopeScaling::linear, RopeScaling::llama3, RopeScaling::yarn,
                                     RopeScaling::longrope);
  rotary.factor = *rc::gen::element(4.0, 1.0, 8.0);
  if (one_in(3)) rotary.attention_factor = 1.25;
  if (rotary.scaling == RopeScaling::llama3) rotary.original_max_position_embeddings = 300;
  if (rotary.scaling == RopeScaling::yarn) {
    // Fewer pairs than four, or another base, leave no room for the ramp.
    rotary.rope_theta = 10000.0;
    rotary.original_max_position_embeddings = 4096;
    if (rotary.rotary_dim < 8) rotary.scaling = RopeScaling::none;
  }
  if (rotary.scaling == RopeScaling::longrope) {
    rotary.original_max_position_embeddings = *rc::gen::element<int64_t>(20, 100'000);
    for (int64_t i = 0; i < rotary.rotary_dim / 2; ++i) {
      rotary.short_factor.push_back(1.0 + 0.1 * static_cast<double>(i));
      rotary.long_factor.push_back(2.0 + static_cast<double>(i));
    }
    rotary.longrope_factors = *rc::gen::element(LongropeFactors::short_factor, LongropeFactors::long_factor);
  }
  return rotary;
}

QKNorm any_norm() {
  QKNorm norm{.kind = *rc::gen::element(NormKind::rms, NormKind::rms_plus_one, NormKind::layer_norm),
              .width = *rc::gen::element(NormWidth::head, NormWidth::all),
              .eps = *rc::gen::element(1e-5, 1e-2),
              .has_weight = !one_in(4)};
  norm.weight_per_head = norm.has_weight && norm.width == NormWidth::head && one_in(2);
  return norm;
}

void any_norms(AttentionConfig& config) {
  config.qk_norm_placement = *rc::gen::element(QKNormPlacement::PRE_ROPE, QKNormPlacement::POST_ROPE);
  if (one_in(4)) config.rms_norm_eps = 1e-3;
  config.use_qk_norm = one_in(4);
  config.qk_layernorm = one_in(6);
  if (one_in(2)) {
    config.q_layernorm = any_norm();
    config.k_layernorm = any_norm();
  }
  if (one_in(5)) config.v_norm = any_norm();
}

void any_mask(AttentionConfig& config, const LayerWishes& wishes) {
  config.is_causal = !wishes.bidirectional || !one_in(5);
  const auto size = [&] { return *rc::gen::inRange<int64_t>(1, wishes.longest_text + 3); };
  if (one_in(2)) config.sliding_window = size();
  if (one_in(3)) config.attention_chunk_size = size();
}

// One of all types, as far as rows of `columns` hold whole blocks.
WeightType any_type(int64_t columns) {
  const auto type =
      *rc::gen::element(WeightType::f32, WeightType::bf16, WeightType::f16, WeightType::f64, WeightType::f8_e4m3,
                        WeightType::f8_e5m2, WeightType::q8_0, WeightType::q4_0, WeightType::q4_1, WeightType::q5_0,
                        WeightType::q5_1, WeightType::q4_k, WeightType::q5_k, WeightType::q6_k);
  return columns % block_of(type).values == 0 ? type : WeightType::f32;
}

void any_heads(AttentionConfig& config, bool small) {
  config.num_key_value_heads = *rc::gen::element<int64_t>(1, 2, 3);
  config.num_attention_heads = config.num_key_value_heads * *rc::gen::element<int64_t>(1, 2, 3, 4);
  const auto widths =
      small ? rc::gen::element<int64_t>(16, 8, 33, 40) : rc::gen::element<int64_t>(64, 32, 128, 16, 8, 33, 80);
  config.head_dim = *widths;
  config.v_head_dim = one_in(4) ? *widths : config.head_dim;
  // Heads wider than any block of the kernels, few of them: the oracle is slow.
  if (!small && one_in(12)) {
    config.num_key_value_heads = 1;
    config.num_attention_heads = *rc::gen::element<int64_t>(1, 2);
    config.head_dim = *rc::gen::inRange<int64_t>(129, 601);
    config.v_head_dim = *rc::gen::inRange<int64_t>(129, 601);
  }
  config.hidden_size = small ? *rc::gen::element<int64_t>(32, 24) : *rc::gen::element<int64_t>(64, 32, 24, 256, 300);
  config.is_eagle3_draft = one_in(8);
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const LayerCase& c) {
  const AttentionConfig& g = c.config;
  out << "hidden " << g.hidden_size << (g.is_eagle3_draft ? " (input twice as wide)" : "") << ", "
      << g.num_attention_heads << " heads on " << g.num_key_value_heads << ", head_dim " << g.head_dim
      << ", v_head_dim " << g.v_head_dim << (g.is_causal ? ", causal" : ", bidirectional") << ", window "
      << g.sliding_window << ", chunk " << g.attention_chunk_size << ", " << g.learned_sinks_size << " sinks, cap "
      << g.logit_soft_cap << ", value scale " << g.value_scale
      << (g.query_position_scale ? fmt::format(", query scale from {}", g.query_position_scale->offset) : "")
      << (g.qkv_bias ? ", qkv bias" : "") << (g.o_bias ? ", o bias" : "") << (g.fused_qkv ? ", fused" : "")
      << (c.reorders_rows ? ", rows reordered" : "") << (g.clip_qkv ? ", clipped" : "");
  if (g.rotary_emb)
    out << ", rotary of " << g.rotary_emb->rotary_dim << " style " << static_cast<int>(g.rotary_emb->style)
        << " scaling " << static_cast<int>(g.rotary_emb->scaling) << " list "
        << static_cast<int>(g.rotary_emb->longrope_factors) << " base " << g.rotary_emb->rope_theta;
  const auto norm = [&](const char* name, const std::optional<QKNorm>& n) {
    if (n)
      out << ", " << name << " kind " << static_cast<int>(n->kind) << " width " << static_cast<int>(n->width)
          << (n->has_weight ? "" : " without gain") << (n->weight_per_head ? ", each head its own" : "");
  };
  if (g.use_qk_norm) out << ", qk norm";
  if (g.qk_layernorm) out << ", qk layer norm";
  norm("q norm", g.q_layernorm);
  norm("k norm", g.k_layernorm);
  norm("v norm", g.v_norm);
  if (c.scaling != KvScaling::per_token) out << ", given scales of kind " << static_cast<int>(c.scaling);
  return out << " (placement " << static_cast<int>(g.qk_norm_placement) << "), weights " << name_of(c.qkv_type)
             << " and " << name_of(c.output_type) << ", hidden " << name_of(c.hidden_dtype) << ", cache "
             << name_of(c.cache_dtype) << ", storage " << static_cast<int>(c.storage) << " in pages of " << c.page_size
             << ", seed " << c.seed;
}

void draw_storage(LayerCase& c) {
  const bool with_reach = one_in(3);
  if (c.config.sliding_window > 0 && with_reach)
    c.storage = KvStorage::ring;
  else if (c.config.attention_chunk_size > 0 && with_reach)
    c.storage = KvStorage::chunk;
  else
    c.storage = *rc::gen::element(KvStorage::contiguous, KvStorage::paged);
  c.page_size = c.storage == KvStorage::contiguous ? 0 : *rc::gen::element<int64_t>(16, 32, 64, 128, 256);
}

rc::Gen<LayerCase> layer_cases(LayerWishes wishes) {
  return rc::gen::exec([wishes] {
    LayerCase c;
    AttentionConfig& config = c.config;
    any_heads(config, wishes.small);
    any_mask(config, wishes);
    any_norms(config);
    if (!one_in(5)) config.rotary_emb = any_rotary(config.head_dim);
    if (one_in(6)) config.clip_qkv = 0.8F;
    config.fused_qkv = one_in(3);
    config.qkv_bias = one_in(2);
    config.o_bias = one_in(2);
    config.softmax_scale = *rc::gen::element(0.0, 0.0, 0.3);
    config.logit_soft_cap = *rc::gen::element(0.0, 0.0, 5.0);
    if (one_in(5))
      config.query_position_scale =
          QueryPositionScale{.floor_scale = 8, .attn_scale = 0.2, .offset = *rc::gen::element<int64_t>(0, 1)};
    if (one_in(5)) config.value_scale = 0.7;
    config.learned_sinks_size = *rc::gen::element<int64_t>(0, 1, 0, 3);
    config.inference.seq_len = 4096;
    c.qkv_type = any_type(config.input_size());
    c.output_type = any_type(config.num_attention_heads * config.v_head_dim);
    c.reorders_rows = one_in(4);
    c.hidden_dtype = *rc::gen::element(DType::f32, DType::bf16, DType::f16);
    c.cache_dtype =
        *rc::gen::element(DType::f32, DType::bf16, DType::f16, DType::i8, DType::i4, DType::f8_e4m3, DType::f8_e5m2);
    draw_storage(c);
    c.seed = *rc::gen::arbitrary<uint64_t>();
    return c;
  });
}

Layer::Layer(const LayerCase& c) : case_(c) {
  case_.config = c.config.validated();
  Random random(c.seed);
  add_projections(random);
  add_norms(random);
  const AttentionConfig& config = case_.config;
  weights_.sinks = random.normals(config.num_attention_heads * config.learned_sinks_size);
  attention_ = Attention::load(weights_, config, Threads(1));
}

WeightView Layer::add_matrix(WeightType type, int64_t rows, int64_t columns, Random& random) {
  bytes_.push_back(random_weight(type, rows, columns, 1.0 / std::sqrt(static_cast<double>(columns)), random));
  return WeightView::make(type, rows, columns, bytes_.back());
}

void Layer::add_projections(Random& random) {
  const AttentionConfig& config = case_.config;
  const int64_t q_rows = config.num_attention_heads * config.head_dim;
  const int64_t k_rows = config.num_key_value_heads * config.head_dim;
  const int64_t v_rows = config.num_key_value_heads * config.v_head_dim;
  QkvWeights& qkv = weights_.qkv;
  const auto bias = [&](int64_t rows) { return config.qkv_bias ? random.normals(rows, 0.3) : std::vector<float>(); };
  if (config.fused_qkv) {
    qkv.qkv = add_matrix(case_.qkv_type, q_rows + k_rows + v_rows, config.input_size(), random);
    qkv.qkv_bias = bias(q_rows + k_rows + v_rows);
  } else {
    qkv.q = add_matrix(case_.qkv_type, q_rows, config.input_size(), random);
    qkv.k = add_matrix(case_.qkv_type, k_rows, config.input_size(), random);
    qkv.v = add_matrix(case_.qkv_type, v_rows, config.input_size(), random);
    qkv.q_bias = bias(q_rows);
    qkv.k_bias = bias(k_rows);
    qkv.v_bias = bias(v_rows);
  }
  if (case_.reorders_rows) {
    for (int64_t i = 0; i < q_rows; ++i) qkv.q_row_order.push_back(q_rows - 1 - i);
    for (int64_t i = 0; i < k_rows; ++i) qkv.k_row_order.push_back((i + 3) % k_rows);
  }
  weights_.output =
      add_matrix(case_.output_type, config.hidden_size, config.num_attention_heads * config.v_head_dim, random);
  if (config.o_bias) weights_.output_bias = random.normals(config.hidden_size, 0.3);
}

void Layer::add_norms(Random& random) {
  const AttentionConfig& config = case_.config;
  const auto fill = [&](const std::optional<QKNorm>& norm, int64_t heads, int64_t width, std::vector<float>& weight,
                        std::vector<float>* bias) {
    if (!norm) return;
    const int64_t count = norm->width == NormWidth::all || norm->weight_per_head ? heads * width : width;
    if (norm->has_weight) weight = random.normals(count, 0.2, norm->kind == NormKind::rms_plus_one ? 0.0 : 1.0);
    if (norm->kind == NormKind::layer_norm && bias != nullptr) *bias = random.normals(count, 0.2);
  };
  fill(config.q_layernorm, config.num_attention_heads, config.head_dim, weights_.q_norm, &weights_.q_norm_bias);
  fill(config.k_layernorm, config.num_key_value_heads, config.head_dim, weights_.k_norm, &weights_.k_norm_bias);
  fill(config.v_norm, config.num_key_value_heads, config.v_head_dim, weights_.v_norm, nullptr);
}

KvCacheOptions Layer::cache_options(int64_t slots, int64_t capacity) const {
  KvCacheOptions options{
      .slots = slots, .capacity = capacity, .dtype = case_.cache_dtype, .page_size = case_.page_size};
  if (case_.scaling == KvScaling::per_token) return options;
  Random random(case_.seed);
  const auto with_scales = [&](int64_t width) {
    const int64_t heads = config().num_key_value_heads;
    int64_t count = 1;
    if (case_.scaling == KvScaling::per_head) count = heads;
    if (case_.scaling == KvScaling::per_channel) count = case_.seed % 2 == 0 ? width : heads * width;
    KvFormat format{.dtype = case_.cache_dtype, .scaling = case_.scaling};
    for (int64_t i = 0; i < count; ++i) format.scales.push_back(0.02F + 0.02F * std::abs(random.normal()));
    return format;
  };
  options.keys = with_scales(config().head_dim);
  options.values = with_scales(config().v_head_dim);
  return options;
}

KvCache Layer::make_cache(int64_t slots, int64_t capacity, int64_t speculation_length) const {
  KvCacheOptions options = cache_options(slots, capacity);
  options.speculation_length = speculation_length;
  return {case_.storage, options, config()};
}

KvCache Layer::make_cache_of(const Attention& attention, int64_t slots, int64_t capacity,
                             int64_t speculation_length) const {
  KvCacheOptions options = cache_options(slots, capacity);
  options.speculation_length = speculation_length;
  return attention.make_cache(case_.storage, options);
}

KvCache Layer::make_contiguous_cache(int64_t slots, int64_t capacity) const {
  return KvCache::contiguous({.slots = slots, .capacity = capacity, .dtype = case_.cache_dtype}, config());
}

Tensor Layer::text(int64_t tokens, uint64_t index) const {
  Random random(case_.seed + 1 + index);
  Tensor hidden(DType::f32, {tokens, config().input_size()});
  for (float& number : hidden.elements<float>()) number = random.normal();
  return convert(hidden, case_.hidden_dtype);
}

}  // namespace regard::test
