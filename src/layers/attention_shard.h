#pragma once

#include <vector>

#include "linear/row_parallel.h"
#include "parallel/row_heads.h"
#include "regard/attention.h"

namespace regard {

// What one rank computes of a layer in one stage: some heads, with their weights.
struct AttentionShard : RowHeads {
  AttentionConfig config;  // of this rank's heads
  std::shared_ptr<Communicator> row;
  QkvProjection qkv;
  OutputProjection output;
  RowParallel output_sum;  // empty: this rank's product is the whole
  struct NormWeights {
    std::vector<float> q, q_bias, k, k_bias, v;
  };
  NormWeights norms;
  std::vector<float> sinks;  // [heads], several sinks of a head as one

  // `config` is the whole layer's, validated; `order[rank]` is the part that each rank of the layer has.
  [[nodiscard]] static AttentionShard load(const AttentionWeights& weights, const AttentionConfig& config,
                                           const Threads& threads, const Ranks& ranks, const Ranks::Stage& stage,
                                           std::span<const int64_t> order);

  // This rank's.
  [[nodiscard]] std::span<const int64_t> q_heads() const { return q_heads_of(row->rank()); }
  [[nodiscard]] std::span<const int64_t> kv_heads() const { return kv_heads_of(row->rank()); }
  [[nodiscard]] TokenShare token_share() const { return token_share_of(row->rank()); }
};

}  // namespace regard
