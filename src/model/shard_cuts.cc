#include "model/shard_cuts.h"

#include "parallel/even_parts.h"
#include "parallel/gqa_sharding.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// What a matrix of `whole` rows or columns keeps of them, and which stored ones these are.
struct Kept {
  int64_t whole = 0;
  std::vector<Run> runs;
};

Kept in_storage(const Kept& kept, RowsOf rows) {
  if (rows == RowsOf::all) return kept;
  Kept stored{.whole = 2 * kept.whole};
  if (rows == RowsOf::even || rows == RowsOf::odd) {
    for (const Run& run : kept.runs) stored.runs.push_back({2 * run.first, 2 * run.count});
    return stored;
  }
  for (const int64_t half : {int64_t{0}, kept.whole})
    for (const Run& run : kept.runs) stored.runs.push_back({half + run.first, run.count});
  return stored;
}

class CutList {
 public:
  CutList(const Checkpoint& checkpoint, const TensorNames& names, const CheckpointShard& shard)
      : checkpoint_(checkpoint), names_(names), shard_(shard) {}

  TensorCuts take(const ModelSpec& spec) {
    for (size_t i = 0; i < spec.layers.size(); ++i) {
      layer_ = static_cast<int64_t>(i);
      add_attention(spec.layers[i].attention.validated());
      std::visit([&](const auto& mlp) { add_mlp(mlp); }, spec.layers[i].mlp);
    }
    return std::move(cuts_);
  }

 private:
  void add_attention(const AttentionConfig& c) {
    const GqaSharding sharding(c.num_attention_heads, c.num_key_value_heads, shard_.tp_degree, shard_.gqa);
    const auto q_heads = sharding.q_heads_of(shard_.rank);
    const auto kv_heads = sharding.kv_heads_of(shard_.rank);
    const auto q = runs_of_heads(q_heads, c.head_dim);
    const auto k = runs_of_heads(kv_heads, c.head_dim);
    const auto v = runs_of_heads(kv_heads, c.v_head_dim);
    const int64_t q_rows = c.num_attention_heads * c.head_dim;
    const int64_t k_rows = c.num_key_value_heads * c.head_dim;
    const int64_t v_rows = c.num_key_value_heads * c.v_head_dim;
    if (c.fused_qkv) {
      // Each block of rows is cut on its own [PROJ-15].
      std::vector<Run> rows = q;
      for (Run run : k) rows.push_back({run.first < 0 ? -1 : run.first + q_rows, run.count});
      for (Run run : v) rows.push_back({run.first < 0 ? -1 : run.first + q_rows + k_rows, run.count});
      add_rows("attention.qkv", {q_rows + k_rows + v_rows, rows}, c.qkv_bias);
    } else {
      add_rows("attention.q", {q_rows, q}, c.qkv_bias);
      add_rows("attention.k", {k_rows, k}, c.qkv_bias);
      add_rows("attention.v", {v_rows, v}, c.qkv_bias);
    }
    add_columns("attention.output", {c.num_attention_heads * c.v_head_dim, runs_of_heads(q_heads, c.v_head_dim)});
  }

  void add_mlp(const DenseMlp& mlp, const std::string& prefix = "mlp.", int64_t expert = 0) {
    const ElementRange part = mlp_part_of(mlp.width, shard_.tp_degree, shard_.rank);
    const Kept own{.whole = mlp.width, .runs = {{part.first, part.count}}};
    if (mlp.gated) add_rows(prefix + "gate", own, mlp.has_bias, expert);
    add_rows(prefix + "up", own, mlp.has_bias, expert);
    add_columns(prefix + "down", own, expert);
  }

  void add_mlp(const ExpertsMlp& mlp) {
    for (int64_t expert = 0; expert < mlp.experts; ++expert) add_mlp(mlp.expert, "expert.", expert);
    if (mlp.shared) add_mlp(*mlp.shared, "shared.");
  }

  void add_rows(const std::string& part, const Kept& rows, bool has_bias, int64_t expert = 0) {
    const TensorName name = names_.of(part, layer_, expert);
    const Kept stored = in_storage(rows, name.rows);
    add(name.weight, name.transposed ? 1 : 2, stored, "rows");
    if (has_bias) add(name.bias, 1, stored, "numbers");
  }

  // A bias of sums is added once, whoever has it.
  void add_columns(const std::string& part, const Kept& columns, int64_t expert = 0) {
    const TensorName name = names_.of(part, layer_, expert);
    add(name.weight, name.transposed ? 2 : 1, columns, "columns");
  }

  // The axis is counted from the last.
  void add(const std::string& name, int from_last, const Kept& kept, const char* what) {
    const StoredTensor& tensor = checkpoint_.tensor(name);
    const auto axis = static_cast<int64_t>(tensor.shape.rank()) - from_last;
    require(axis >= 0 && tensor.shape[static_cast<size_t>(axis)] == kept.whole,
            "checkpoint: tensor \"{}\" has shape {}, expected {} {}", printable(name), tensor.shape, kept.whole, what);
    cuts_[name] = {.axis = static_cast<size_t>(axis), .runs = kept.runs};
  }

  const Checkpoint& checkpoint_;
  const TensorNames& names_;
  const CheckpointShard& shard_;
  int64_t layer_ = 0;
  TensorCuts cuts_;
};

}  // namespace

TensorCuts shard_cuts(const Checkpoint& checkpoint, const ModelSpec& spec, const TensorNames& names,
                      const CheckpointShard& shard) {
  return CutList(checkpoint, names, shard).take(spec);
}

}  // namespace regard
