#include "layers/attention_shard.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/fail.h"

namespace regard {
namespace {

void check_vector(const char* name, const std::vector<float>& values, int64_t expected, bool required) {
  if (values.empty() && !required) return;
  require(static_cast<int64_t>(values.size()) == expected, "attention: {} has {} numbers, expected {}", name,
          values.size(), expected);
  for (const float value : values) require(!std::isnan(value), "attention: {} holds NaN", name);
}

// Whether the weights hold numbers of every head.
bool is_of_each_head(const QKNorm& norm) { return norm.width == NormWidth::all || norm.weight_per_head; }

void check_norm(const char* name, const std::optional<QKNorm>& norm, const std::vector<float>& weight,
                const std::vector<float>& bias, int64_t heads, int64_t width) {
  if (!norm) {
    require(weight.empty() && bias.empty(), "attention: weights of {} are given, but the config has no such norm",
            name);
    return;
  }
  require(norm->has_weight || weight.empty(), "attention: weights of {} are given, but its has_weight is false", name);
  require(norm->kind == NormKind::layer_norm || bias.empty(),
          "attention: a bias of {} is given, but only a layer_norm has one", name);
  const int64_t expected = is_of_each_head(*norm) ? heads * width : width;
  check_vector(name, weight, expected, norm->has_weight);
  check_vector(name, bias, expected, false);
}

// Several sinks of a head are one whose exp is the sum of theirs [GAP-6].
std::vector<float> fold_sinks(const std::vector<float>& sinks, int64_t heads, int64_t size) {
  if (size <= 1) return sinks;
  std::vector<float> folded(static_cast<size_t>(heads));
  for (int64_t head = 0; head < heads; ++head) {
    const auto* first = sinks.data() + head * size;
    const float largest = *std::max_element(first, first + size);
    if (std::isinf(largest)) {  // sinks of -inf are none
      folded[static_cast<size_t>(head)] = largest;
      continue;
    }
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += std::exp(static_cast<double>(first[i]) - largest);
    folded[static_cast<size_t>(head)] = static_cast<float>(largest + std::log(sum));
  }
  return folded;
}

void check_weights(const AttentionWeights& weights, const AttentionConfig& c) {
  check_norm("q_layernorm", c.q_layernorm, weights.q_norm, weights.q_norm_bias, c.num_attention_heads, c.head_dim);
  check_norm("k_layernorm", c.k_layernorm, weights.k_norm, weights.k_norm_bias, c.num_key_value_heads, c.head_dim);
  check_norm("v_norm", c.v_norm, weights.v_norm, {}, c.num_key_value_heads, c.v_head_dim);
  check_vector("sinks", weights.sinks, c.num_attention_heads * c.learned_sinks_size, true);
}

// Of a vector with `width` numbers a head those of these heads; zeros for a head that is none.
std::vector<float> of_heads(const std::vector<float>& values, std::span<const int64_t> heads, int64_t width) {
  std::vector<float> own;
  for (const int64_t head : heads)
    for (int64_t i = 0; i < width && !values.empty(); ++i)
      own.push_back(head == -1 ? 0.0F : values[static_cast<size_t>(head * width + i)]);
  return own;
}

// Weights of a norm: of each head its own, or the same for all.
std::vector<float> of_norm(const std::optional<QKNorm>& norm, const std::vector<float>& values,
                           std::span<const int64_t> heads, int64_t width) {
  return norm && is_of_each_head(*norm) ? of_heads(values, heads, width) : values;
}

std::vector<int64_t> counting(int64_t count) {
  std::vector<int64_t> all(static_cast<size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::vector<int64_t> copy_of(std::span<const int64_t> heads) { return {heads.begin(), heads.end()}; }

RowParallel output_sum_of(const AttentionShard& shard, const AttentionConfig& config, const Ranks& ranks) {
  const auto wire = ranks.config().rpl_reduce_dtype.value_or(DType::f32);
  const bool deterministic = ranks.config().deterministic;
  if (!deterministic && ranks.size() == 1) return {};
  const int64_t leaf_heads = deterministic ? 1 : shard.config.num_attention_heads;
  return {shard.row, shard.sum_tree(deterministic), shard.sum_leaves(deterministic), leaf_heads * config.v_head_dim,
          wire};
}

}  // namespace

AttentionShard AttentionShard::load(const AttentionWeights& weights, const AttentionConfig& config,
                                    const Threads& threads, const Ranks& ranks, const Ranks::Stage& stage,
                                    std::span<const int64_t> order) {
  check_weights(weights, config);
  AttentionShard shard;
  const RankMesh mesh(ranks.size(), stage.degree, ranks.config().switch_cc);
  static_cast<RowHeads&>(shard) =
      RowHeads::of({.heads = config.num_attention_heads, .kv_heads = config.num_key_value_heads}, Mask::of(config),
                   ranks.config(), mesh, stage.row, order);
  shard.row = stage.in_row;
  shard.config = config;
  shard.config.num_attention_heads = shard.sharding.local_heads();
  shard.config.num_key_value_heads = shard.sharding.local_kv_heads();
  const AttentionConfig& stored = weights.is_shard ? shard.config : config;
  const auto q_heads = weights.is_shard ? counting(shard.config.num_attention_heads) : copy_of(shard.q_heads());
  const auto kv_heads = weights.is_shard ? counting(shard.config.num_key_value_heads) : copy_of(shard.kv_heads());
  // Of one rank all heads are as stored; but the fixed sum takes head by head.
  const bool whole = shard.sharding.tp() == 1 && !ranks.config().deterministic;
  const HeadShard heads = whole ? HeadShard{} : HeadShard{.q_heads = q_heads, .kv_heads = kv_heads};
  shard.qkv = QkvProjection::load(weights.qkv, stored, threads, heads);
  shard.output = OutputProjection::load(weights.output, weights.output_bias, stored, threads, heads);
  shard.output_sum = output_sum_of(shard, config, ranks);
  const AttentionConfig& c = config;
  shard.norms = {.q = of_norm(c.q_layernorm, weights.q_norm, shard.q_heads(), c.head_dim),
                 .q_bias = of_norm(c.q_layernorm, weights.q_norm_bias, shard.q_heads(), c.head_dim),
                 .k = of_norm(c.k_layernorm, weights.k_norm, shard.kv_heads(), c.head_dim),
                 .k_bias = of_norm(c.k_layernorm, weights.k_norm_bias, shard.kv_heads(), c.head_dim),
                 .v = of_norm(c.v_norm, weights.v_norm, shard.kv_heads(), c.v_head_dim)};
  shard.sinks = of_heads(fold_sinks(weights.sinks, c.num_attention_heads, c.learned_sinks_size), shard.q_heads(), 1);
  return shard;
}

}  // namespace regard
