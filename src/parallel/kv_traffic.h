#pragma once

#include "parallel/kv_holders.h"
#include "parallel/traffic_stage.h"

// What ranks send of keys and values: to rows that attend to them, to ranks that keep them, and back from these.
namespace regard {

// How the tokens of a run are dealt out to rows.
class RowsOfRun {
 public:
  RowsOfRun(const TokenRun& run, int64_t rows, ContextSplit split) : run_(run), rows_(rows), split_(split) {}

  [[nodiscard]] int64_t tokens_of(int64_t row) const {
    if (split_ == ContextSplit::strided) return (run_.count - row + rows_ - 1) / rows_;
    return part_size(run_.count, rows_, row);
  }

  // The row's tokens, as indices: the first, and the step from one to the next.
  [[nodiscard]] int64_t first_of(int64_t row) const {
    return split_ == ContextSplit::strided ? row : part_of(run_.count, rows_, row).first;
  }
  [[nodiscard]] int64_t step() const { return split_ == ContextSplit::strided ? rows_ : 1; }

  // The first position that the row's tokens see; its own first token's, which has one.
  [[nodiscard]] int64_t first_seen_by(int64_t row, const Mask& mask) const {
    return mask.first_seen(run_.first + first_of(row));
  }

  // Calls visit(tokens) with what the row's tokens see of the run, in disjoint intervals of indices.
  template <class Visit>
  void for_each_seen(int64_t row, const Mask& mask, Visit visit) const {
    int64_t begin = 0;
    for (int64_t i = 0, token = first_of(row); i < tokens_of(row); ++i, token += step()) {
      const Interval seen = mask.visible(run_.first + token, run_.first + run_.count, run_.first + run_.prefix);
      visit(Interval{std::max(begin, seen.first - run_.first), seen.last - run_.first});
      begin = seen.last - run_.first + 1;
    }
  }

  // Calls visit(row, token) for all tokens.
  template <class Visit>
  void for_each(Visit visit) const {
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t i = 0; i < tokens_of(row); ++i) visit(row, first_of(row) + i * step());
  }

 private:
  TokenRun run_;
  int64_t rows_;
  ContextSplit split_;
};

// Each rank sends the keys and values of its row's tokens, for its own KV heads, to the ranks of its column that want
// them. Where some rank keeps a head that it does not compute, every row wants what is kept.
void exchange_keys_values(TrafficStage& stage, const LayerCall& call, const ParallelConfig& config,
                          const KvHolders& holders);

// Head by head, every row passes on the tokens of all rows but the next one's, in d - 1 rounds.
void pass_keys_values_round(TrafficStage& stage, const LayerCall& call, const ParallelConfig& config);

// Heads that a rank keeps but does not compute come from one that does.
void fetch_missing_heads(TrafficStage& stage, const LayerCall& call, const KvHolders& holders);

// What came before the call and its tokens see comes from the ranks that keep it, as it is stored.
void fetch_prior(TrafficStage& stage, const LayerCall& call, const ParallelConfig& config, const KvHolders& holders);

}  // namespace regard
