#include "model/layer_weights.h"

#include "parallel/even_parts.h"
#include "parallel/gqa_sharding.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Query and KV heads that the checkpoint holds: all, or a rank's.
AttentionConfig stored_heads(const Checkpoint& checkpoint, AttentionConfig config) {
  const auto& shard = checkpoint.shard();
  if (!shard) return config;
  const GqaSharding heads(config.num_attention_heads, config.num_key_value_heads, shard->tp_degree, shard->gqa);
  config.num_attention_heads = heads.local_heads();
  config.num_key_value_heads = heads.local_kv_heads();
  return config;
}

// Inner columns of an MLP that the checkpoint holds.
int64_t stored_width(const Checkpoint& checkpoint, int64_t width) {
  const auto& shard = checkpoint.shard();
  return shard ? mlp_part_of(width, shard->tp_degree, shard->rank).count : width;
}

// The stored row that is row r of q or k in half-split order: the two halves of a head lie side by side.
std::vector<int64_t> order_of_interleaved(int64_t heads, int64_t head_dim) {
  require(head_dim % 2 == 0, "checkpoint: head_dim is {}, expected an even number", head_dim);
  std::vector<int64_t> order;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t i = 0; i < head_dim / 2; ++i) order.push_back(head * head_dim + 2 * i + half);
  return order;
}

std::vector<float> bias_of(TensorReader& reader, const TensorPlace& place, bool expected) {
  return expected ? reader.bias(place) : std::vector<float>();
}

int64_t norm_size(const QKNorm& norm, int64_t heads, int64_t width) {
  return norm.width == NormWidth::all ? heads * width : width;
}

// The matrices of one MLP, called `prefix` + gate, up and down.
DenseWeights dense_weights(TensorReader& reader, const DenseMlp& mlp, int64_t hidden, const std::string& prefix,
                           int64_t layer, int64_t expert) {
  DenseWeights weights;
  const int64_t width = stored_width(reader.checkpoint(), mlp.width);
  const auto rows = [&](const char* name, StoredMatrix& matrix, std::vector<int64_t>& chosen,
                        std::vector<float>& bias) {
    const std::string part = prefix + name;
    const TensorPlace place{.part = part, .layer = layer, .expert = expert};
    matrix = reader.matrix(place, width, hidden);
    chosen = reader.rows_of(place, width);
    bias = bias_of(reader, place, mlp.has_bias);
  };
  if (mlp.gated) rows("gate", weights.gate, weights.gate_rows, weights.gate_bias);
  rows("up", weights.up, weights.up_rows, weights.up_bias);
  const std::string part = prefix + "down";
  const TensorPlace down{.part = part, .layer = layer, .expert = expert};
  weights.down = reader.matrix(down, hidden, width);
  weights.down_bias = bias_of(reader, down, mlp.has_bias);
  return weights;
}

MlpWeights weights_of(TensorReader& reader, const DenseMlp& mlp, int64_t hidden, int64_t layer) {
  return dense_weights(reader, mlp, hidden, "mlp.", layer, 0);
}

MlpWeights weights_of(TensorReader& reader, const ExpertsMlp& mlp, int64_t hidden, int64_t layer) {
  ExpertsWeights weights;
  const TensorPlace router{.part = "mlp.router", .layer = layer};
  weights.router = reader.matrix(router, mlp.experts, hidden);
  weights.router_bias = bias_of(reader, router, mlp.router.has_bias);
  if (mlp.router.has_selection_bias)
    weights.selection_bias = reader.vector({.part = "mlp.selection_bias", .layer = layer}, mlp.experts);
  for (int64_t expert = 0; expert < mlp.experts; ++expert)
    weights.experts.push_back(dense_weights(reader, mlp.expert, hidden, "expert.", layer, expert));
  if (mlp.shared) weights.shared = dense_weights(reader, *mlp.shared, hidden, "shared.", layer, 0);
  if (mlp.has_shared_gate) weights.shared_gate = reader.vector({.part = "mlp.shared_gate", .layer = layer}, hidden);
  return weights;
}

}  // namespace

AttentionWeights attention_weights(TensorReader& reader, const AttentionConfig& whole, int64_t layer) {
  const AttentionConfig c = stored_heads(reader.checkpoint(), whole);
  const auto place = [&](std::string_view part) { return TensorPlace{.part = part, .layer = layer}; };
  const int64_t q_rows = c.num_attention_heads * c.head_dim;
  const int64_t k_rows = c.num_key_value_heads * c.head_dim;
  const int64_t v_rows = c.num_key_value_heads * c.v_head_dim;
  AttentionWeights weights;
  weights.is_shard = reader.checkpoint().shard().has_value();
  QkvWeights& qkv = weights.qkv;
  if (c.fused_qkv) {
    qkv.qkv = reader.matrix(place("attention.qkv"), q_rows + k_rows + v_rows, c.input_size());
    qkv.qkv_bias = bias_of(reader, place("attention.qkv"), c.qkv_bias);
  } else {
    qkv.q = reader.matrix(place("attention.q"), q_rows, c.input_size());
    qkv.k = reader.matrix(place("attention.k"), k_rows, c.input_size());
    qkv.v = reader.matrix(place("attention.v"), v_rows, c.input_size());
    qkv.q_bias = bias_of(reader, place("attention.q"), c.qkv_bias);
    qkv.k_bias = bias_of(reader, place("attention.k"), c.qkv_bias);
    qkv.v_bias = bias_of(reader, place("attention.v"), c.qkv_bias);
  }
  if (reader.names().has_interleaved_heads) {
    qkv.q_row_order = order_of_interleaved(c.num_attention_heads, c.head_dim);
    qkv.k_row_order = order_of_interleaved(c.num_key_value_heads, c.head_dim);
  }
  weights.output = reader.matrix(place("attention.output"), c.hidden_size, c.num_attention_heads * c.v_head_dim);
  weights.output_bias = bias_of(reader, place("attention.output"), c.o_bias);
  // Norms and sinks are whole in every part of a model.
  if (whole.q_layernorm && whole.q_layernorm->has_weight)
    weights.q_norm = reader.vector(place("attention.q_norm"),
                                   norm_size(*whole.q_layernorm, whole.num_attention_heads, whole.head_dim));
  if (whole.k_layernorm && whole.k_layernorm->has_weight)
    weights.k_norm = reader.vector(place("attention.k_norm"),
                                   norm_size(*whole.k_layernorm, whole.num_key_value_heads, whole.head_dim));
  if (whole.learned_sinks_size > 0)
    weights.sinks = reader.vector(place("attention.sinks"), whole.num_attention_heads * whole.learned_sinks_size);
  return weights;
}

MlpWeights mlp_weights(TensorReader& reader, const LayerSpec& spec, int64_t layer) {
  return std::visit([&](const auto& mlp) { return weights_of(reader, mlp, spec.attention.hidden_size, layer); },
                    spec.mlp);
}

std::optional<Norm> norm_weights(TensorReader& reader, const std::optional<NormSpec>& spec, std::string_view part,
                                 int64_t layer, int64_t hidden_size) {
  if (!spec) return std::nullopt;
  const TensorPlace place{.part = part, .layer = layer};
  auto weight = reader.vector(place, hidden_size);
  return Norm(*spec, std::move(weight), bias_of(reader, place, spec->has_bias));
}

void check_shard(const Checkpoint& checkpoint, const Ranks& ranks) {
  if (!checkpoint.shard()) return;
  const CheckpointShard& shard = *checkpoint.shard();
  const ParallelConfig& parallel = ranks.config();
  require(parallel.tp_degree == shard.tp_degree, "checkpoint: it was cut for {} ranks, but there are {}",
          shard.tp_degree, parallel.tp_degree);
  require(parallel.cp_degree == 1 && parallel.attention_dp_degree == 1,
          "checkpoint: it was cut by heads alone, but cp_degree is {} and attention_dp_degree {}, expected 1 and 1",
          parallel.cp_degree, parallel.attention_dp_degree);
  require(ranks.rank() == shard.rank && parallel.gqa == shard.gqa,
          "checkpoint: it is the part of rank {} under {}, but this is rank {} under {}", shard.rank,
          name_of(shard.gqa), ranks.rank(), name_of(parallel.gqa));
}

}  // namespace regard
