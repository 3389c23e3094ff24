#pragma once

#include <span>
#include <vector>

#include "kernels/attend.h"
#include "layers/attention_shard.h"

namespace regard {

// The ranks of a row that have copies of the same KV head, and a part of its tokens each, in the order of their shares.
struct TokenKeepers {
  explicit TokenKeepers(const AttentionShard& shard);

  std::vector<int64_t> columns;
  std::vector<TokenShare> shares;

  [[nodiscard]] size_t keeper_of(int64_t position) const {
    return static_cast<size_t>(position / TokenShare::kRun) % columns.size();
  }
};

// Of a sequence's tokens from first_position on keeps those with these indices, as KvCache::accept does: all ranks of
// the row call this. Throws Error on each of them for indices that do not rise or are not stored.
void accept_shared(const AttentionShard& shard, KvCache& cache, int64_t slot, int64_t first_position,
                   std::span<const int64_t> indices);

// Flash decoding: ranks with copies of a KV head have parts of its tokens each. Queries of all of them meet the tokens
// of each, and partial results go back to those whose queries they are [PAR-54], [PAR-55].
class SharedTokens {
 public:
  // `by_block`: partials of key blocks travel one by one, to be merged as one rank would have, bit for bit.
  SharedTokens(const AttentionShard& shard, bool by_block, Workspace& workspace);

  // Tokens of a call on this rank's heads: their spans see this rank's part of the keys, their intervals are in
  // positions of the sequence.
  void attend(const kernels::AttendCall& call);

 private:
  [[nodiscard]] std::vector<float> gather_queries(const float* own, int64_t tokens, int64_t width);
  [[nodiscard]] int64_t sets_of(const TokenShare& share, int64_t last) const;
  void exchange(std::vector<std::vector<std::byte>> sent, std::vector<std::vector<std::byte>>& received) const;

  const AttentionShard& shard_;
  bool by_block_;
  Workspace& workspace_;
  TokenKeepers members_;
};

}  // namespace regard
