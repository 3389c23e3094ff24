#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace regard {

/// Ranks 0..tp-1 in `degree` rows of tp/degree: a row is a tensor-parallel group, a column a context-parallel (or
/// data-parallel) group, in order of rows [PAR-1].
class RankMesh {
 public:
  /// Rows are consecutive ranks, but for degree 8 of 64 ranks, which is the reference's 8x8 mesh unless `switch_cc`
  /// [PAR-2]..[PAR-4]. Throws Error where degree does not divide tp.
  RankMesh(int64_t tp, int64_t degree, bool switch_cc = false);

  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t columns() const { return static_cast<int64_t>(ranks_.size()) / rows_; }
  [[nodiscard]] int64_t rank_at(int64_t row, int64_t column) const {
    return ranks_[static_cast<size_t>(row * columns() + column)];
  }
  /// Where a rank stands [PAR-5].
  [[nodiscard]] int64_t row_of(int64_t rank) const { return inverse_[static_cast<size_t>(rank)] / columns(); }
  [[nodiscard]] int64_t column_of(int64_t rank) const { return inverse_[static_cast<size_t>(rank)] % columns(); }
  /// Row by row, and the place of each rank in that [PAR-8].
  [[nodiscard]] std::span<const int64_t> flat() const { return ranks_; }
  [[nodiscard]] std::span<const int64_t> inverse() const { return inverse_; }

 private:
  int64_t rows_;
  std::vector<int64_t> ranks_, inverse_;
};

/// Which shard each rank loads in prefill and in decode, so that the keys and values a rank computes in prefill are
/// those it reads in decode.
struct RankOrders {
  std::vector<int64_t> prefill;  ///< [tp] shard of tp/cp in prefill, taken modulo that number
  std::vector<int64_t> decode;   ///< [tp] shard of tp/dp in decode, likewise
  /// [tp] which of its prefill KV heads a rank keeps for decode [PAR-14]; 0 where cp == dp and it keeps all.
  std::vector<int64_t> head_index;
};

/// The reference's orders [PAR-12]..[PAR-16], with right indices for the 8x8 mesh [GAP-55]. Throws Error for degrees
/// that do not divide tp, and where the reference can't order: there ranks have to exchange keys and values [GAP-56].
[[nodiscard]] RankOrders rank_orders(int64_t tp, int64_t cp, int64_t dp, int64_t kv_heads, bool switch_cc = false);

}  // namespace regard
