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
  // A call of this layer alone.
  AttentionOutput run();
  // As a part of a step on which all layers have agreed.
  AttentionOutput run_agreed();

  // A layer of a step, and this rank's cache of it, or none.
  struct Layer {
    const Attention& attention;
    const KvCache* cache;
  };
  // That all ranks take a step of these layers, before anything changes: rows of decode have sequences of their own, so
  // that one may refuse what others accept, and all hear of it before anybody waits for somebody. Throws Error on each.
  static void agree(std::span<const Layer> layers, std::span<const Span> spans,
                    std::span<const ConstTensorView> active_masks);

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
  // Returns how many tokens the spans hold.
  static int64_t check_spans(const Attention& attention, std::span<const Span> spans,
                             std::span<const ConstTensorView> active_masks);
  void check_rows();
  static void check_cache(const Layer& layer, std::span<const Span> spans,
                          std::span<const ConstTensorView> active_masks);
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
