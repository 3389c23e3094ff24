#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/attend.h"
#include "kernels/workspace.h"
#include "regard/cache.h"
#include "regard/tensor.h"

namespace regard {

// The active tokens of one span, each of which sees only some of those before it: branches of a token tree. What a
// token sees counts as the sequence before it, as if its branch had been decoded alone; so its position is the number
// of tokens it sees, and its bits are those of plain decoding.
class TokenTree {
 public:
  // `mask` is [count, count]: whether the row's token sees the column's. Throws Error for masks of another shape or
  // type, a token that does not see itself, or one that sees a later one.
  TokenTree(const Span& span, ConstTensorView mask);

  // Tokens between the span's first position and the token, on its own branch.
  [[nodiscard]] int64_t depth(int64_t token) const {
    return static_cast<int64_t>(branches_[static_cast<size_t>(token)].size()) - 1;
  }

  // Pages of kTile tokens that the tails of all tokens take.
  [[nodiscard]] int64_t pages() const;
  // Copies the tails from the span's slot into pages first_page.. of `memory`; `shape` tells heads and widths.
  void copy_tails(const kernels::KvPages& kv, const kernels::AttendShape& shape, const kernels::KvPages& memory,
                  int64_t first_page, const Threads& threads);
  // What AttendSpan wants, once they are copied.
  [[nodiscard]] const kernels::KvPages* tails() const { return tails_.data(); }
  [[nodiscard]] int64_t tail_start() const { return span_.first_position / kernels::kTile * kernels::kTile; }

 private:
  [[nodiscard]] int64_t pages_of(int64_t token) const {
    return kernels::tiles(span_.first_position + depth(token) + 1 - tail_start());
  }

  Span span_;
  std::vector<std::vector<int32_t>> branches_;  // by token: the tokens it sees, itself the last
  std::vector<int32_t> places_;
  std::vector<kernels::KvPages> tails_;
};

// The trees of the spans' active masks, one a span, or none at all. Throws Error, which begins with `caller`, for
// another number of masks than spans, and under a mask that is not causal.
[[nodiscard]] std::vector<std::optional<TokenTree>> make_trees(std::string_view caller, std::span<const Span> spans,
                                                               std::span<const ConstTensorView> active_masks,
                                                               bool is_causal);

// Copies the tails of the spans that have a tree into the workspace's memory. `trees` are one a span, or none at all.
void copy_tails(std::span<std::optional<TokenTree>> trees, std::span<const Span> spans, const KvCache& cache,
                const kernels::AttendShape& shape, Workspace& workspace);

}  // namespace regard
