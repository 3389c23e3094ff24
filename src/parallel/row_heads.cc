#include "parallel/row_heads.h"

#include <algorithm>

#include "tensor/fail.h"

namespace regard {

RankOrders orders_of(const ParallelConfig& parallel, int64_t kv_heads) {
  try {
    return rank_orders(parallel.tp_degree, parallel.cp_degree, parallel.attention_dp_degree, kv_heads,
                       parallel.switch_cc);
  } catch (const Error&) {
    const auto by_place = [&](int64_t degree) {
      const RankMesh mesh(parallel.tp_degree, degree, parallel.switch_cc);
      std::vector<int64_t> order;
      for (int64_t rank = 0; rank < parallel.tp_degree; ++rank) order.push_back(mesh.column_of(rank));
      return order;
    };
    return {
        .prefill = by_place(parallel.cp_degree), .decode = by_place(parallel.attention_dp_degree), .head_index = {}};
  }
}

RowHeads RowHeads::of(const Counts& counts, const Mask& mask, const ParallelConfig& parallel, const RankMesh& mesh,
                      int64_t row, std::span<const int64_t> order) {
  RowHeads heads;
  const int64_t parts = mesh.columns();
  heads.sharding = GqaSharding(counts.heads, counts.kv_heads, parts, parallel.gqa);
  heads.shares_tokens = parallel.flash_decoding_enabled && !mask.reach();
  heads.shards.clear();
  for (int64_t column = 0; column < parts; ++column)
    heads.shards.push_back(order[static_cast<size_t>(mesh.rank_at(row, column))] % parts);
  return heads;
}

SumTree RowHeads::sum_tree(bool deterministic) const {
  return deterministic ? SumTree(sharding.heads(), sharding.heads() / sharding.kv_heads()) : SumTree(sharding.tp());
}

std::vector<ElementRange> RowHeads::sum_leaves(bool deterministic) const {
  std::vector<ElementRange> leaves;
  for (const int64_t part : shards) {
    if (!deterministic) {
      leaves.push_back({.first = part, .count = 1});
      continue;
    }
    const auto heads = sharding.q_heads_of(part);
    const auto count = heads.size() - static_cast<size_t>(std::count(heads.begin(), heads.end(), -1));
    leaves.push_back({.first = count == 0 ? 0 : heads.front(), .count = static_cast<int64_t>(count)});
  }
  return leaves;
}

}  // namespace regard
