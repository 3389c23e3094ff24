#pragma once

#include <algorithm>
#include <vector>

#include "parallel/rank_order.h"
#include "parallel/row_heads.h"

namespace regard {

// Which ranks compute and which keep the keys and values of a layer: pure numbers, the same on every rank.
class KvHolders {
 public:
  // Of rows of prefill and of decode: all rows of a stage have their parts in the same order.
  KvHolders(const ParallelConfig& parallel, const RowHeads& prefill, const RowHeads& decode);

  // The checkpoint's KV heads that a rank computes in prefill, and those that it keeps for decode.
  [[nodiscard]] std::span<const int64_t> computed(int64_t rank) const { return computed_[static_cast<size_t>(rank)]; }
  [[nodiscard]] std::span<const int64_t> kept(int64_t rank) const { return kept_[static_cast<size_t>(rank)]; }
  // The tokens of its sequences that a rank keeps.
  [[nodiscard]] TokenShare share(int64_t rank) const { return shares_[static_cast<size_t>(rank)]; }
  // The row of decode that a rank is in: it keeps the sequences of that row.
  [[nodiscard]] int64_t decode_row(int64_t rank) const { return decode_mesh_.row_of(rank); }
  // Those that it keeps but does not compute, each once.
  [[nodiscard]] std::vector<int64_t> missing(int64_t rank) const;
  // Whether every rank computes all that it keeps.
  [[nodiscard]] bool keeps_what_it_computes() const { return keeps_what_it_computes_; }

  // Whether every rank computes just the heads that it keeps, in the same order.
  [[nodiscard]] bool computes_what_it_keeps() const {
    return std::ranges::equal(computed_, kept_, [](auto a, auto b) { return std::ranges::equal(a, b); });
  }

  // One that computes the head; different ones for different askers.
  [[nodiscard]] int64_t computer_of(int64_t head, int64_t asker) const;
  // One that keeps the tokens of `share` of the head, in that row of decode; the asker itself where it does.
  [[nodiscard]] int64_t keeper_of(int64_t head, int64_t row, int64_t share, int64_t asker) const;
  // Ranks that share a head's tokens.
  [[nodiscard]] int64_t shares() const { return shares_.front().ranks; }

 private:
  RankMesh decode_mesh_;
  std::vector<std::span<const int64_t>> computed_, kept_;
  std::vector<TokenShare> shares_;
  bool keeps_what_it_computes_ = true;
};

}  // namespace regard
