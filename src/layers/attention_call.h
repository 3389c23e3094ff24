#pragma once

#include <optional>
#include <vector>

#include "kernels/workspace.h"
#include "layers/attention_shard.h"
#include "layers/head_rows.h"
#include "layers/hidden_output.h"
#include "layers/step_plan.h"
#include "regard/attention.h"

namespace regard {

// The span of a call that names none: slot 0 of its cache continued, or a sequence of its own without a cache. Throws
// Error where ranks divide the cache's sequences or their tokens, as no rank knows the length then.
[[nodiscard]] Span implied_span(const Attention& attention, const AttentionInput& input);

// One rank's work in a call on packed tokens that all ranks of its row share. It works through the tokens in pieces, so
// that scratch memory does not grow with the length of a prompt. Schedule invariance makes the pieces invisible.
class AttentionCall {
 public:
  // Over ranks `place` is given, and hidden states go to `input.output` as it says. `plan` is that of the step, in
  // which the layer's cache was checked; where there is none, the call makes its own, and checks everything before
  // anything changes.
  AttentionCall(const Attention& attention, const AttentionShard& shard, const AttentionInput& input,
                const RankPlace* place = nullptr, StepPlan* plan = nullptr);
  AttentionOutput run();

 private:
  // Tokens first..first+count-1 of the packed tokens.
  struct Piece {
    int64_t first;
    int64_t count;
  };

  void check_input() const;
  void make_plan();
  void resolve_angles();
  [[nodiscard]] RowAngles angles_of(const Piece& piece);
  void make_outputs();

  void run_piece(const Piece& piece);
  [[nodiscard]] ConstTensorView normed_input(const Piece& piece);
  void prepare(const Piece& piece, const HeadRows& rows);
  void append(const Piece& piece, TensorView k, TensorView v);
  void append_own(size_t index, const Span& part, TensorView keys, TensorView values);
  void attend(const Piece& piece, ConstTensorView q, TensorView attended);
  void clear_skipped();

  // Calls visit(index of the span, tokens before the part in the piece, the part as a span) for each span's part inside
  // a piece.
  template <class Visit>
  void for_each_part(const Piece& piece, Visit visit) const;

  const Attention& layer_;
  const AttentionShard& shard_;
  const AttentionConfig& config_;
  const AttentionInput& input_;
  const RankPlace* place_;
  std::optional<Workspace> own_workspace_;
  Workspace& workspace_;
  Workspace::Memory& memory_;
  std::optional<Span> own_span_;
  std::optional<StepPlan> own_plan_;
  StepPlan* plan_;
  std::optional<KvCache> own_cache_;
  KvCache* cache_ = nullptr;
  std::vector<std::optional<KvCache>> active_;  // by span: all tokens of a tree, where the cache has only a share
  // Of all tokens, where the caller passed them or wants them back.
  RotaryAngles angles_;
  AttentionOutput output_;
  TensorView hidden_;  // where hidden states go
  std::optional<HiddenOutput> hidden_output_;
};

// Throws Error for a norm that does not fit the layer.
void check_rmsnorm(const AttentionOptions& options, const AttentionConfig& config);

}  // namespace regard
