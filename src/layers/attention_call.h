#pragma once

#include <optional>
#include <vector>

#include "kernels/workspace.h"
#include "layers/attention_shard.h"
#include "layers/head_rows.h"
#include "layers/hidden_output.h"
#include "layers/token_tree.h"
#include "regard/attention.h"

namespace regard {

// How many of a call's tokens are appended to the cache at once, before any of them is attended to.
[[nodiscard]] int64_t tokens_at_once(const AttentionConfig& config, bool has_trees, int64_t tokens);

// The span of a call that names none: slot 0 of its cache continued, or a sequence of its own without a cache. Throws
// Error where ranks divide the cache's sequences or their tokens, as no rank knows the length then.
[[nodiscard]] Span implied_span(const Attention& attention, const AttentionInput& input);

// One rank's work in a call on packed tokens that all ranks of its row share: checks everything first, then works
// through the tokens in pieces, so that scratch memory does not grow with the length of a prompt. Schedule invariance
// makes the pieces invisible.
class AttentionCall {
 public:
  // Over ranks `place` is given, and hidden states go to `input.output` as it says.
  AttentionCall(const Attention& attention, const AttentionShard& shard, const AttentionInput& input,
                const RankPlace* place = nullptr);
  AttentionOutput run();

 private:
  // Tokens first..first+count-1 of the packed tokens.
  struct Piece {
    int64_t first;
    int64_t count;
  };

  void check_input() const;
  void resolve_spans();
  void resolve_cache();
  void check_reach() const;
  void resolve_angles();
  void find_angles(const Piece& piece);
  void make_outputs();
  [[nodiscard]] int64_t piece_tokens() const { return tokens_at_once(config_, !input_.active_masks.empty(), tokens_); }

  void run_piece(const Piece& piece);
  [[nodiscard]] ConstTensorView normed_input(const Piece& piece);
  void prepare(const Piece& piece, const HeadRows& rows);
  void append(const Piece& piece, TensorView k, TensorView v);
  void append_own(size_t index, const Span& part, TensorView keys, TensorView values);
  void attend(const Piece& piece, ConstTensorView q, TensorView attended);
  void clear_skipped();

  // The tree of a span; null: its tokens don't branch.
  [[nodiscard]] const TokenTree* tree_of(size_t span) const {
    return trees_.empty() || !trees_[span] ? nullptr : &*trees_[span];
  }
  // The position in its sequence of a span's token.
  [[nodiscard]] int64_t position_of(size_t span, int64_t token) const;

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
  int64_t tokens_ = 0;
  std::vector<Span> own_spans_;
  std::span<const Span> spans_;
  std::optional<KvCache> own_cache_;
  KvCache* cache_ = nullptr;
  TokenShare share_;                             // of the sequences' tokens those that the cache has
  std::vector<std::optional<TokenTree>> trees_;  // by span; empty: no span has one
  std::vector<std::optional<KvCache>> active_;   // by span: all tokens of a tree, where the cache has only a share
  // Of tokens first .. first+count-1 of the call.
  struct Angles {
    ConstTensorView cos;
    ConstTensorView sin;
    int64_t first = 0;
    int64_t count = 0;
  };
  Angles angles_;
  AttentionOutput output_;
  TensorView hidden_;  // where hidden states go
  std::optional<HiddenOutput> hidden_output_;
};

// Throws Error for a norm that does not fit the layer.
void check_rmsnorm(const AttentionOptions& options, const AttentionConfig& config);

}  // namespace regard
