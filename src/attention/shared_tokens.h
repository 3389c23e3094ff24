#pragma once

#include <span>
#include <vector>

#include "attention/attention_shard.h"
#include "kernels/attend.h"

namespace regard {

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
  struct Member {
    int64_t column;
    TokenShare share;
  };

  [[nodiscard]] std::vector<float> gather_queries(const float* own, int64_t tokens, int64_t width);
  [[nodiscard]] int64_t sets_of(const Member& member, int64_t last) const;
  [[nodiscard]] const Member& self() const { return members_[static_cast<size_t>(self_)]; }
  void exchange(std::vector<std::vector<std::byte>> sent, std::vector<std::vector<std::byte>>& received) const;

  const AttentionShard& shard_;
  bool by_block_;
  Workspace& workspace_;
  std::vector<Member> members_;  // in order of their shares
  int64_t self_ = 0;
};

}  // namespace regard
