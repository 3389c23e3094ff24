#pragma once

#include <span>
#include <vector>

#include "parallel/even_parts.h"
#include "parallel/gqa_sharding.h"
#include "parallel/rank_order.h"
#include "parallel/sum_tree.h"
#include "parallel/token_share.h"
#include "regard/mask.h"
#include "regard/parallel.h"

namespace regard {

// The reference's orders where it has them, so that most ranks keep the keys and values they compute. Elsewhere each
// rank has the part of its place in the row, and keys and values are exchanged [GAP-56].
[[nodiscard]] RankOrders orders_of(const ParallelConfig& parallel, int64_t kv_heads);

// Which heads of a layer, and which tokens of them, each rank of a row has in one stage: pure numbers, the same on all
// ranks.
struct RowHeads {
  GqaSharding sharding{1, 1, 1};
  std::vector<int64_t> shards = {0};  // by rank of the row: which of the row's equal parts it has
  bool shares_tokens = false;

  struct Counts {
    int64_t heads;
    int64_t kv_heads;
  };
  // `order[rank]` is the part that each rank of the layer has in this stage.
  [[nodiscard]] static RowHeads of(const Counts& counts, const Mask& mask, const ParallelConfig& parallel,
                                   const RankMesh& mesh, int64_t row, std::span<const int64_t> order);

  // The checkpoint's heads that a rank of the row has; -1: a head of zeros.
  [[nodiscard]] std::span<const int64_t> q_heads_of(int64_t column) const { return sharding.q_heads_of(part(column)); }
  [[nodiscard]] std::span<const int64_t> kv_heads_of(int64_t column) const {
    return sharding.kv_heads_of(part(column));
  }
  // Flash decoding: ranks with copies of a KV head share its tokens; layers with windows or chunks keep them all, since
  // they are few.
  [[nodiscard]] TokenShare token_share_of(int64_t column) const {
    const int64_t copies = shares_tokens ? sharding.kv_copies() : 1;
    return {.ranks = copies, .index = part(column) % copies};
  }

  // Which of the row's equal parts a rank has.
  [[nodiscard]] int64_t part(int64_t column) const { return shards[static_cast<size_t>(column)]; }

  // The tree of the output projection's sum, and the leaves of each rank: one each, or, for bits that do not depend on
  // the degrees, its query heads. Those are leaves in a row: padding stands behind them.
  [[nodiscard]] SumTree sum_tree(bool deterministic) const;
  [[nodiscard]] std::vector<ElementRange> sum_leaves(bool deterministic) const;
};

}  // namespace regard
