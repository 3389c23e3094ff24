#include "model/shard_cuts.h"

#include "parallel/even_parts.h"
#include "tensor/fail.h"

namespace regard {
namespace {

class CutList {
 public:
  CutList(const Checkpoint& checkpoint, const Family& family, const CheckpointShard& shard)
      : checkpoint_(checkpoint), family_(family), shard_(shard) {}

  TensorCuts take() {
    const ModelConfig model = family_.model();
    for (int64_t layer = 0; layer < model.num_layers; ++layer) {
      add_attention(layer, family_.attention(layer).validated());
      add_mlp(layer, model.intermediate_size);
    }
    return std::move(cuts_);
  }

 private:
  void add_attention(int64_t layer, const AttentionConfig& c) {
    const GqaSharding sharding(c.num_attention_heads, c.num_key_value_heads, shard_.tp_degree, shard_.gqa);
    const auto q_heads = sharding.q_heads_of(shard_.rank);
    const auto kv_heads = sharding.kv_heads_of(shard_.rank);
    const auto name = [&](std::string_view part) { return family_.layer_tensor(layer, part); };
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
      add_rows(name("attention.qkv"), q_rows + k_rows + v_rows, rows);
    } else {
      add_rows(name("attention.q"), q_rows, q);
      add_rows(name("attention.k"), k_rows, k);
      add_rows(name("attention.v"), v_rows, v);
    }
    add_columns(name("attention.output"), c.num_attention_heads * c.v_head_dim, runs_of_heads(q_heads, c.v_head_dim));
  }

  void add_mlp(int64_t layer, int64_t width) {
    const ElementRange part = mlp_part_of(width, shard_.tp_degree, shard_.rank);
    const std::vector<Run> own = {{part.first, part.count}};
    for (const char* rows : {"mlp.gate", "mlp.up"}) add_rows(family_.layer_tensor(layer, rows), width, own);
    add_columns(family_.layer_tensor(layer, "mlp.down"), width, own);
  }

  void add_rows(const std::string& name, int64_t whole, const std::vector<Run>& rows) {
    const StoredTensor& weight = checkpoint_.tensor(name + ".weight");
    check(weight, weight.shape.rank() == 2 && weight.shape[0] == whole, "rows", whole);
    cuts_[weight.name] = {.axis = 0, .runs = rows};
    const StoredTensor* bias = checkpoint_.find(name + ".bias");
    if (bias == nullptr) return;
    check(*bias, bias->shape == Shape{whole}, "numbers", whole);
    cuts_[bias->name] = {.axis = 0, .runs = rows};
  }

  // A bias of sums is added once, whoever has it.
  void add_columns(const std::string& name, int64_t whole, const std::vector<Run>& columns) {
    const StoredTensor& weight = checkpoint_.tensor(name + ".weight");
    check(weight, weight.shape.rank() == 2 && weight.shape[1] == whole, "columns", whole);
    cuts_[weight.name] = {.axis = 1, .runs = columns};
  }

  static void check(const StoredTensor& tensor, bool fits, const char* what, int64_t count) {
    require(fits, "checkpoint: tensor \"{}\" has shape {}, expected {} {}", printable(tensor.name), tensor.shape, count,
            what);
  }

  const Checkpoint& checkpoint_;
  const Family& family_;
  const CheckpointShard& shard_;
  TensorCuts cuts_;
};

}  // namespace

TensorCuts shard_cuts(const Checkpoint& checkpoint, const Family& family, const CheckpointShard& shard) {
  return CutList(checkpoint, family, shard).take();
}

}  // namespace regard
