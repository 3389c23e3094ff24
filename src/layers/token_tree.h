#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/attend.h"
#include "kernels/workspace.h"
#include "parallel/token_share.h"
#include "regard/cache.h"
#include "regard/tensor.h"

namespace regard {

// The active tokens of one span, each of which sees only some of those before it: branches of a token tree. What a
// token sees counts as the sequence before it, as if its branch had been decoded alone; so its position is the number
// of tokens it sees, and its bits are those of plain decoding. Of what it sees, a rank may have a share only.
class TokenTree {
 public:
  // `mask` is [count, count]: whether the row's token sees the column's. Throws Error for masks of another shape or
  // type, a token that does not see itself, or one that sees a later one.
  TokenTree(const Span& span, ConstTensorView mask, TokenShare share);

  // Tokens between the span's first position and the token, on its own branch.
  [[nodiscard]] int64_t depth(int64_t token) const {
    return static_cast<int64_t>(branches_[static_cast<size_t>(token)].size()) - 1;
  }

  // Pages of kTile tokens that the tails of all tokens take.
  [[nodiscard]] int64_t pages() const;
  // Copies the tails into pages first_page.. of `memory`: what came before the span from its slot `kv`, the active
  // tokens from there too, or from `active`, which holds all of them. `shape` tells heads and widths.
  void copy_tails(const kernels::KvPages& kv, const KvCache* active, const kernels::AttendShape& shape,
                  const kernels::KvPages& memory, int64_t first_page, const Threads& threads);
  // What AttendSpan wants, once they are copied.
  [[nodiscard]] const kernels::KvPages* tails() const { return tails_.data(); }
  [[nodiscard]] int64_t tail_start() const { return share_.count_below(whole_tail_start()); }

 private:
  // In positions of the whole sequence.
  [[nodiscard]] int64_t whole_tail_start() const { return span_.first_position / kernels::kTile * kernels::kTile; }
  [[nodiscard]] int64_t pages_of(int64_t token) const {
    return kernels::tiles(share_.count_below(span_.first_position + depth(token) + 1) - tail_start());
  }

  Span span_;
  TokenShare share_;
  std::vector<std::vector<int32_t>> branches_;  // by token: the tokens it sees, itself the last
  std::vector<int32_t> places_;
  std::vector<kernels::KvPages> tails_;
};

// The trees of the spans' active masks, one a span, or none at all. Throws Error, which begins with `caller`, for
// another number of masks than spans, and under a mask that is not causal.
[[nodiscard]] std::vector<std::optional<TokenTree>> make_trees(std::string_view caller, std::span<const Span> spans,
                                                               std::span<const ConstTensorView> active_masks,
                                                               bool is_causal, TokenShare share = {});

// Throws Error, which begins with `caller`, for a prefix that is longer than its span, under a mask that is not causal,
// or of tokens that branch.
void check_prefixes(std::string_view caller, std::span<const Span> spans, bool is_causal,
                    std::span<const ConstTensorView> active_masks);

// Copies the tails of the spans that have a tree into the workspace's memory. `trees` are one a span, or none at all;
// `active` too: caches of all of the spans' tokens, where `cache` has only a share of them.
void copy_tails(std::span<std::optional<TokenTree>> trees, std::span<const Span> spans, const KvCache& cache,
                std::span<const std::optional<KvCache>> active, const kernels::AttendShape& shape,
                Workspace& workspace);

}  // namespace regard
