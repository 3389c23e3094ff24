#pragma once

#include <optional>
#include <vector>

#include "cache/pieces.h"
#include "kernels/workspace.h"
#include "layers/attention_shard.h"
#include "layers/context_exchange.h"
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
  // Over ranks `place` is given, hidden states come and go as it says, and input.output is there. `plan` is that of the
  // step, in which the layer's cache was checked; where there is none, the call makes its own, and checks everything
  // before anything changes. With an `exchange`, tokens attend to its context; then a plan is given.
  AttentionCall(const Attention& attention, const AttentionShard& shard, const AttentionInput& input,
                const RankPlace* place = nullptr, StepPlan* plan = nullptr, ContextExchange* exchange = nullptr);
  AttentionOutput run();

 private:
  // Of the packed tokens, or of those of this rank's row.
  using Piece = ElementRange;

  void check_input() const;
  void make_plan();
  void resolve_angles();
  [[nodiscard]] RowAngles angles_of(const Piece& piece);
  void make_outputs();

  void run_piece(const Piece& piece);
  [[nodiscard]] int64_t piece_tokens(TokenCursor& at, int64_t first) const;
  [[nodiscard]] ConstTensorView input_rows(const Piece& piece);
  void project(const Piece& piece, const HeadRows& rows);
  [[nodiscard]] ContextExchange::KeysValues project_keys_values(const Piece& piece);
  void prepare(const Piece& piece, const HeadRows& rows);
  void append(const Piece& piece, TensorView k, TensorView v);
  void append_own(size_t index, const Span& part, TensorView keys, TensorView values);
  void trim(const Piece& piece);
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
  ContextExchange* exchange_;
  ConstTensorView hidden_states_;  // without a norm as they came, else with the residual added
  Tensor own_rows_;                // of them a piece's
  std::optional<KvCache> own_cache_;
  KvCache* cache_ = nullptr;
  std::vector<std::optional<KvCache>> active_;  // by span: all tokens of a tree, where the cache has only a share
  // Of all tokens, where the caller passed them or wants them back.
  RotaryAngles angles_;
  AttentionOutput output_;
  TensorView hidden_;  // where hidden states go
  std::optional<HiddenOutput> hidden_output_;
};

}  // namespace regard
