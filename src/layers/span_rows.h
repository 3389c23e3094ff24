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

// What a span's token sees of its sequence of `length` tokens.
[[nodiscard]] inline Interval visible_to(const Span& span, int64_t token, const TokenTree* tree, const Mask& mask,
                                         int64_t length) {
  const int64_t position = span.first_position + (tree == nullptr ? token : tree->depth(token));
  return mask.visible(position, tree == nullptr ? length : position + 1, span.prefix_end());
}

// Rows of one sequence in a kernel call, from first_token on. A slot of -1 has no keys. A tree's tails have to be
// copied before the call.
[[nodiscard]] inline kernels::AttendSpan attend_span(const KvCache& cache, const Span& span, int64_t first_token,
                                                     const TokenTree* tree) {
  if (span.slot == -1) return {.kv = {}, .first_token = first_token, .count = span.count};
  return {.kv = cache.view(span.slot),
          .first_token = first_token,
          .count = span.count,
          .tails = tree == nullptr ? nullptr : tree->tails(),
          .tail_start = tree == nullptr ? 0 : tree->tail_start()};
}

}  // namespace regard
