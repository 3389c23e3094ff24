#pragma once

#include <span>
#include <vector>

#include "parallel/kv_holders.h"
#include "parallel/span_share.h"
#include "regard/cache.h"
#include "regard/mask.h"

namespace regard {

// A span's part in a prefill over rows of ranks.
struct ContextSequence {
  Span span;                        // of no sequence where its slot is -1: nobody sees or keeps it
  int64_t begin = 0;                // the first position of which there are keys: without a cache the span's
  int64_t keeping_row = 0;          // of decode
  Interval kept;                    // positions of the span's tokens that caches go on to hold; empty: none
  std::vector<SpanShare> shares;    // by row: its tokens of the span, perhaps none
  std::vector<Interval> seen = {};  // by row: from the first to the last position that its tokens see
};

// Keys and values of some tokens and KV heads, on their way from one rank to another.
struct KvMove {
  int64_t giver = 0;
  int64_t taker = 0;
  size_t sequence = 0;
  int64_t giver_head = 0;  // the first of `heads` among those that the giver has, and among the taker's
  int64_t taker_head = 0;
  int64_t heads = 1;
  int64_t first = 0;  // positions first, first + stride, ... before end, as far as they are in the share
  int64_t end = 0;
  int64_t stride = 1;
  TokenShare share = {};

  [[nodiscard]] int64_t tokens() const {
    if (!share.is_all()) return share.count_below(end) - share.count_below(first);
    return std::max<int64_t>(0, (end - first + stride - 1) / stride);
  }
  template <class Visit>
  void for_each_position(Visit visit) const {
    for (int64_t position = first; position < end; position += stride)
      if (share.owns(position)) visit(position);
  }
};

// Which keys and values travel in a prefill whose tokens rows of ranks divide [PAR-22]: pure numbers, the same on all
// ranks. First what caches hold of earlier tokens and the call's tokens see; then what rows compute; last what ranks
// keep and others have computed. Moves are listed for one rank, those in which it gives or takes, or for all; both ends
// of a message find its moves in the same order.
class ContextPlan {
 public:
  static constexpr int64_t kAllRanks = -1;

  ContextPlan(std::vector<ContextSequence> sequences, const Mask& mask, const KvHolders& holders,
              const RankMesh& prefill_mesh);

  [[nodiscard]] const std::vector<ContextSequence>& sequences() const { return sequences_; }
  [[nodiscard]] const KvHolders& holders() const { return holders_; }
  // Whether a rank is to have what caches keep of a sequence: it keeps it, or is to hand it to who does.
  [[nodiscard]] bool wants_kept(const ContextSequence& sequence, int64_t rank) const;

  // Windows of positions, one after the other, of which something moves, so that messages do not grow with a text.
  [[nodiscard]] std::vector<Interval> prior_windows() const;
  [[nodiscard]] std::vector<Interval> kept_windows() const;
  // Moves of positions in a window: of earlier tokens from who keeps them, and of kept ones from who computed them.
  [[nodiscard]] std::vector<KvMove> prior(int64_t rank, Interval window) const;
  [[nodiscard]] std::vector<KvMove> missing(int64_t rank, Interval window) const;
  // Each row's tokens go in rounds, one piece of them in each; `tokens` are those of the round, as indices among the
  // tokens of a row.
  [[nodiscard]] std::vector<KvMove> computed(int64_t rank, Interval tokens) const;

 private:
  // [row] disjoint intervals of positions, in order.
  using Wishes = std::vector<std::vector<Interval>>;
  [[nodiscard]] Wishes wishes_of(const ContextSequence& sequence, const Mask& mask, bool kept) const;
  void add_computed(int64_t giver, int64_t taker, Interval tokens, std::vector<KvMove>& moves) const;

  std::vector<ContextSequence> sequences_;
  const KvHolders& holders_;
  const RankMesh& mesh_;
  std::vector<Wishes> seen_, seen_or_kept_;  // by sequence: what each row's tokens see of the new ones, and that joined
                                             // with what caches keep
};

}  // namespace regard
