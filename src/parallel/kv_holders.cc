#include "parallel/kv_holders.h"

#include <algorithm>

#include "tensor/fail.h"

namespace regard {
namespace {

bool contains(std::span<const int64_t> heads, int64_t head) {
  return std::find(heads.begin(), heads.end(), head) != heads.end();
}

// The asker itself, or one of the others in turn.
int64_t pick(const std::vector<int64_t>& candidates, int64_t head, int64_t asker) {
  require(!candidates.empty(), "attention: no rank has KV head {}", head);
  if (contains(candidates, asker)) return asker;
  return candidates[static_cast<size_t>(asker) % candidates.size()];
}

}  // namespace

KvHolders::KvHolders(const ParallelConfig& parallel, const RowHeads& prefill, const RowHeads& decode)
    : decode_mesh_(parallel.tp_degree, parallel.attention_dp_degree, parallel.switch_cc) {
  const RankMesh prefill_mesh(parallel.tp_degree, parallel.cp_degree, parallel.switch_cc);
  for (int64_t rank = 0; rank < parallel.tp_degree; ++rank) {
    computed_.push_back(prefill.kv_heads_of(prefill_mesh.column_of(rank)));
    kept_.push_back(decode.kv_heads_of(decode_mesh_.column_of(rank)));
    shares_.push_back(decode.token_share_of(decode_mesh_.column_of(rank)));
    keeps_what_it_computes_ &= missing(rank).empty();
  }
}

std::vector<int64_t> KvHolders::missing(int64_t rank) const {
  std::vector<int64_t> heads;
  for (const int64_t head : kept(rank))
    if (head != -1 && !contains(computed(rank), head) && !contains(heads, head)) heads.push_back(head);
  return heads;
}

int64_t KvHolders::computer_of(int64_t head, int64_t asker) const {
  std::vector<int64_t> candidates;
  for (size_t rank = 0; rank < computed_.size(); ++rank)
    if (contains(computed_[rank], head)) candidates.push_back(static_cast<int64_t>(rank));
  return pick(candidates, head, asker);
}

int64_t KvHolders::keeper_of(int64_t head, int64_t row, int64_t share, int64_t asker) const {
  std::vector<int64_t> candidates;
  for (int64_t column = 0; column < decode_mesh_.columns(); ++column) {
    const int64_t rank = decode_mesh_.rank_at(row, column);
    if (contains(kept(rank), head) && this->share(rank).index == share) candidates.push_back(rank);
  }
  return pick(candidates, head, asker);
}

}  // namespace regard
