// A family with one matrix for q, k and v: no family that is loaded today has it.
#include "model/shard_cuts.h"

#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/numbers.h"
#include "support/temp_folder.h"

namespace regard {
namespace {

ModelSpec fused_model() {
  AttentionConfig config{.hidden_size = 8, .num_attention_heads = 6, .num_key_value_heads = 2, .head_dim = 2};
  config.v_head_dim = 1;
  config.fused_qkv = config.qkv_bias = true;
  return {.layers = {{.attention = config, .mlp = DenseMlp{.width = 256}}}};
}

TensorNames fused_names() {
  TensorNames names;
  for (const char* part : {"attention.qkv", "attention.output", "mlp.gate", "mlp.up", "mlp.down"})
    names.set(part, named(part));
  return names;
}

TensorCuts fused_cuts(const Checkpoint& checkpoint, const CheckpointShard& shard) {
  return shard_cuts(checkpoint, fused_model(), fused_names(), shard);
}

// Row r of the fused matrix is r everywhere, and so is its bias.
Checkpoint fused_checkpoint(const test::TempFolder& folder, int64_t rows) {
  Tensor qkv(DType::f32, {rows, 8});
  Tensor bias(DType::f32, {rows});
  for (int64_t row = 0; row < rows; ++row) {
    bias.elements<float>()[static_cast<size_t>(row)] = static_cast<float>(row);
    for (int64_t i = 0; i < 8; ++i) qkv.elements<float>()[static_cast<size_t>(row * 8 + i)] = static_cast<float>(row);
  }
  const Tensor output(DType::f32, {8, 6});
  const Tensor wide(DType::f32, {256, 8});
  const Tensor down(DType::f32, {8, 256});
  const std::vector<NamedTensor> tensors = {
      {"attention.qkv.weight", qkv}, {"attention.qkv.bias", bias}, {"attention.output.weight", output},
      {"mlp.gate.weight", wide},     {"mlp.up.weight", wide},      {"mlp.down.weight", down}};
  save_safetensors(folder.path() / "model.safetensors", tensors);
  return Checkpoint::open(folder.path());
}

// q has rows 0..11, k 12..15, v 16..17; ranks 1 and 3 have a zero query head each, and share KV heads with 0 and 2.
TEST(ShardCuts, BlocksOfAFusedMatrixAreCutEachOnItsOwn) {  // [PROJ-15]
  const test::TempFolder folder;
  const auto checkpoint = fused_checkpoint(folder, 18);
  const std::vector<float> expected[] = {
      {0, 1, 2, 3, 12, 13, 16}, {4, 5, 0, 0, 12, 13, 16}, {6, 7, 8, 9, 14, 15, 17}, {10, 11, 0, 0, 14, 15, 17}};
  for (int64_t rank = 0; rank < 4; ++rank) {
    SCOPED_TRACE(rank);
    const TensorCuts cuts = fused_cuts(checkpoint, {.tp_degree = 4, .rank = rank});
    const CutTensor bias = cut_tensor(checkpoint.tensor("attention.qkv.bias"), cuts.at("attention.qkv.bias"));
    const auto own = ConstTensorView(bias.bytes.data(), DType::f32, bias.shape).elements<float>();
    EXPECT_EQ(std::vector<float>(own.begin(), own.end()), expected[rank]);
    const CutTensor qkv = cut_tensor(checkpoint.tensor("attention.qkv.weight"), cuts.at("attention.qkv.weight"));
    EXPECT_EQ(qkv.shape, (Shape{7, 8}));
    const auto rows = ConstTensorView(qkv.bytes.data(), DType::f32, qkv.shape).elements<float>();
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i], expected[rank][i / 8]);
  }
}

TEST(ShardCuts, WhatEveryRankHoldsAsAWholeIsNotCut) {
  const test::TempFolder folder;
  const auto checkpoint = fused_checkpoint(folder, 18);
  const TensorCuts cuts = fused_cuts(checkpoint, {.tp_degree = 4});
  EXPECT_EQ(cuts.size(), checkpoint.tensors().size());
  EXPECT_FALSE(cuts.contains("embedding.weight"));
}

TEST(ShardCuts, AFusedMatrixOfOtherRowsIsRefused) {
  const test::TempFolder folder;
  EXPECT_ERROR(fused_cuts(fused_checkpoint(folder, 17), {.tp_degree = 4}),
               "\"attention.qkv.weight\" has shape [17, 8], expected 18 rows");
}

}  // namespace
}  // namespace regard
