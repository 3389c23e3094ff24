#pragma once

#include <vector>

#include "parallel/token_share.h"
#include "projection/row_parallel.h"
#include "regard/attention.h"

namespace regard {

// What one rank computes of a layer in one stage: some heads, with their weights.
struct AttentionShard {
  GqaSharding sharding{1, 1, 1};
  std::vector<int64_t> shards;  // by rank of the row: which of the row's equal parts it has
  AttentionConfig config;       // of this rank's heads
  std::shared_ptr<Communicator> row;
  bool shares_tokens = false;
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

  // The checkpoint's heads that this rank, or another one of its row, has; -1: a head of zeros.
  [[nodiscard]] std::span<const int64_t> q_heads() const { return sharding.q_heads_of(own_shard()); }
  [[nodiscard]] std::span<const int64_t> kv_heads() const { return sharding.kv_heads_of(own_shard()); }
  [[nodiscard]] std::span<const int64_t> kv_heads_of(int64_t column) const {
    return sharding.kv_heads_of(shards[static_cast<size_t>(column)]);
  }
  // Flash decoding: ranks with copies of a KV head share its tokens; layers with windows or chunks keep them all, since
  // they are few.
  [[nodiscard]] TokenShare token_share_of(int64_t column) const {
    const int64_t copies = shares_tokens ? sharding.kv_copies() : 1;
    return {.ranks = copies, .index = shards[static_cast<size_t>(column)] % copies};
  }
  [[nodiscard]] TokenShare token_share() const { return token_share_of(row->rank()); }
  [[nodiscard]] int64_t own_shard() const { return shards[static_cast<size_t>(row->rank())]; }
};

}  // namespace regard
