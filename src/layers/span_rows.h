#pragma once

#include <algorithm>

#include "kernels/workspace.h"
#include "layers/token_tree.h"
#include "regard/cache.h"
#include "regard/mask.h"

namespace regard {

// Types of hidden states, queries and outputs.
[[nodiscard]] constexpr bool is_activation(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

// Fills the workspace's description of a kernel call: which rows belong to which sequence, and what each sees.
class SpanRows {
 public:
  SpanRows(Workspace::Memory& memory, int64_t tokens) : memory_(memory) {
    memory.spans.clear();
    memory.visible.assign(static_cast<size_t>(tokens), Interval{});
  }

  // Tokens that belong to no sequence: they see nothing.
  void skip(int64_t first_token, int64_t count) {
    memory_.spans.push_back({.kv = {}, .first_token = first_token, .count = count});
  }
  // The span's rows start at first_token; its sequence has `length` tokens. `origin` is the position that the cache's
  // position 0 stands for. A tree's tails have to be copied.
  void add(int64_t first_token, const Span& span, const TokenTree* tree, const kernels::KvPages& kv, const Mask& mask,
           int64_t length, int64_t origin = 0) {
    memory_.spans.push_back({.kv = kv,
                             .first_token = first_token,
                             .count = span.count,
                             .tails = tree == nullptr ? nullptr : tree->tails(),
                             .tail_start = tree == nullptr ? 0 : tree->tail_start()});
    for (int64_t i = 0; i < span.count; ++i) {
      const int64_t position = origin + span.first_position + (tree == nullptr ? i : tree->depth(i));
      const Interval seen =
          mask.visible(position, tree == nullptr ? origin + length : position + 1, origin + span.prefix_end());
      memory_.visible[static_cast<size_t>(first_token + i)] = {std::max<int64_t>(0, seen.first - origin),
                                                               seen.last - origin};
    }
  }

 private:
  Workspace::Memory& memory_;
};

}  // namespace regard
