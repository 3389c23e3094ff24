#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "layers/attention_shard.h"
#include "layers/stage_tokens.h"

namespace regard {

// Where the tokens of a call over ranks stand: which are whose, and what this rank is to end up with.
struct RankPlace {
  const Ranks& ranks;
  const Ranks::Stage& stage;
  const StageTokens& tokens;
  bool scattered;           // each rank gets its own part of its row's tokens; otherwise all ranks get all tokens
  OutputDispatch dispatch;  // otherwise: how several rows come together
};

// The way from attended heads to hidden states: the output projection, the sum over ranks, and who gets the result
// [PAR-30]..[PAR-35].
class HiddenOutput {
 public:
  // `hidden`: one rank: its tokens' rows. Scattered: the rows of this rank's part. Otherwise all rows of the call, of
  // which those of this stage are written. Lives as long as the call.
  HiddenOutput(const AttentionShard& shard, const RankPlace* place, TensorView hidden, Workspace& workspace);

  // The attended heads of tokens first.. of this rank's row, in order. A row may still be missing until `finish`.
  void write(int64_t first, ConstTensorView attended);
  void finish();

 private:
  enum class Way : uint8_t {
    alone,           // one rank
    to_all_direct,   // all ranks are in one row and compute all tokens
    to_own_part,     // scattered
    sum_then_rows,   // OutputDispatch::AR_AG
    sum_then_parts,  // OutputDispatch::RS_AG
    rows_then_sum,   // OutputDispatch::AG_AR
  };

  [[nodiscard]] Way find_way() const;
  void write_alone(int64_t first, ConstTensorView attended);
  void write_part(int64_t first, ConstTensorView attended);
  void write_row(int64_t first, ConstTensorView attended);
  void write_partials(int64_t first, ConstTensorView attended);
  void gather_rows();
  void gather_parts();
  void sum_gathered();
  // Sums of a piece of this row's tokens, which may be under way.
  struct StagedPiece {
    int64_t first = 0;
    int64_t count = 0;
    Tensor rows;
  };
  void place(StagedPiece& piece);
  [[nodiscard]] std::span<const int64_t> tokens_of(int64_t row, ElementRange range) const;
  // rows[i] is token tokens[i] of the call.
  void place_rows(std::span<const int64_t> tokens, ConstTensorView rows);

  const AttentionShard& shard_;
  const RankPlace* place_;
  TensorView hidden_;
  Workspace& workspace_;
  Way way_;
  std::array<StagedPiece, 3> staged_;  // what a sum is told of a piece, the two before it may still need
  int64_t pieces_ = 0;
  Tensor own_;                      // this rank's part of the row's tokens, or all tokens
  Tensor partials_;                 // [nodes, tokens of the row, hidden_size], as partial sums travel
  std::optional<SummedRows> sums_;  // last, as what is under way uses the memory above
};

}  // namespace regard
