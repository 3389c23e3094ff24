#pragma once

#include <optional>
#include <vector>

#include "layers/attention_shard.h"
#include "layers/hidden_output.h"
#include "layers/stage_tokens.h"

namespace regard {

// One call of Attention::forward over ranks: which tokens this rank computes in which stage, how it comes by their
// hidden states, and where the results go.
class RankedCall {
 public:
  RankedCall(const Attention& attention, const AttentionInput& input);
  AttentionOutput run();

  // The spans that are computed alike.
  struct Part {
    bool prefill;
    const AttentionShard& shard;
    const Ranks::Stage& stage;
    std::vector<size_t> spans;
    StageTokens tokens;
    int64_t first_passed = 0;  // of this rank's rows, where each rank passes its own
    int64_t passed = 0;
  };

  [[nodiscard]] static std::vector<Part> parts_of(const Attention& attention, std::span<const Span> spans,
                                                  std::span<const ConstTensorView> active_masks, int64_t slots_a_row);
  // What a rank passes of them, in order: see Attention::tokens_of_rank.
  [[nodiscard]] static std::vector<int64_t> tokens_of_rank(const Ranks& ranks, std::span<const Part> parts,
                                                           int64_t rank);

 private:
  void check_spans();
  void check_rows();
  void agree() const;
  void check_cache() const;
  [[nodiscard]] ConstTensorView row_input(const Part& part);
  void run_part(const Part& part);
  void run_prefill(const Part& part, const RankPlace& place, const AttentionInput& inner);
  void run_decode(const Part& part, const RankPlace& place, AttentionInput inner);
  void clear_skipped();

  const Attention& attention_;
  const AttentionInput& input_;
  const ParallelConfig& parallel_;
  std::optional<Workspace> own_workspace_;
  Workspace& workspace_;
  std::vector<Span> own_spans_;
  std::span<const Span> spans_;
  int64_t tokens_ = 0;
  int64_t slots_a_row_ = 1;
  std::vector<Part> parts_;
  ConstTensorView hidden_states_;
  Tensor row_input_;
  AttentionOutput output_;
  TensorView hidden_;
};

}  // namespace regard
