#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "parallel/even_parts.h"
#include "regard/parallel.h"

namespace regard {

// Tokens first, first + stride, ... of a span: what one row of ranks computes of it.
struct SpanShare {
  size_t span = 0;
  int64_t first = 0;
  int64_t stride = 1;
  int64_t count = 0;

  // Of a span of so many tokens, what row `row` of `rows` computes in prefill; perhaps nothing.
  [[nodiscard]] static SpanShare of_row(size_t span, int64_t tokens, int64_t rows, int64_t row, ContextSplit split) {
    if (split == ContextSplit::strided)
      return {.span = span, .first = row, .stride = rows, .count = (tokens - row + rows - 1) / rows};
    const ElementRange run = part_of(tokens, rows, row);
    return {.span = span, .first = run.first, .stride = 1, .count = run.count};
  }

  [[nodiscard]] int64_t at(int64_t index) const { return first + index * stride; }
  [[nodiscard]] int64_t last() const { return at(count - 1); }
  // How many of them lie before `token`.
  [[nodiscard]] int64_t count_before(int64_t token) const {
    return std::clamp<int64_t>((token - first + stride - 1) / stride, 0, count);
  }
};

}  // namespace regard
