#pragma once

#include <cstdint>
#include <vector>

#include "parallel/even_parts.h"
#include "regard/parallel.h"
#include "regard/tensor.h"

namespace regard {

// The rows of the residual stream that this rank has between layers: all, or with sequence parallelism its own.
struct RowSplit {
  TensorView rows;  // [tokens, hidden], f32
  int64_t rank = 0;
  // Where each rank has its own: their tokens, and their places when ranks' rows lie one after the other.
  std::vector<std::vector<int64_t>> tokens;
  std::vector<ElementRange> ranges;

  [[nodiscard]] bool scattered() const { return !ranges.empty(); }
  [[nodiscard]] const ElementRange& own() const { return ranges[static_cast<size_t>(rank)]; }
  // Rows of all ranks together.
  [[nodiscard]] int64_t total() const { return scattered() ? ranges.back().end() : rows.size(0); }
  // The token of the call that a row is.
  [[nodiscard]] int64_t token_of(int64_t row) const {
    return scattered() ? tokens[static_cast<size_t>(rank)][static_cast<size_t>(row)] : row;
  }
};

// Every rank's rows of scattered ones, in order of ranks: own [own rows, width] -> all [total rows, width], f32, dense.
void gather_split_rows(const Ranks& ranks, const RowSplit& split, ConstTensorView own, TensorView all);

}  // namespace regard
