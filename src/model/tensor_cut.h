#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "regard/checkpoint.h"

namespace regard {

// Indices first .. first+count-1 of an axis, or, where first is -1, so many zeros.
struct Run {
  int64_t first = 0;
  int64_t count = 0;
};

// What is kept of one axis of a tensor: the runs, one after the other.
struct TensorCut {
  size_t axis = 0;
  std::vector<Run> runs;
};

// The indices of heads of so many rows or columns each, -1 being a head of zeros. Neighbours are one run.
[[nodiscard]] std::vector<Run> runs_of_heads(std::span<const int64_t> heads, int64_t width);

// A tensor or a part of one; the bytes are the checkpoint's, or those of `own`.
struct CutTensor {
  WeightType type = WeightType::f32;
  Shape shape;
  std::span<const std::byte> bytes;
  Buffer own;
};

[[nodiscard]] CutTensor whole(const StoredTensor& tensor);

// Along the last axis quantised blocks are kept where all runs begin and end between blocks; elsewhere the result is
// f32.
[[nodiscard]] CutTensor cut_tensor(const StoredTensor& tensor, const TensorCut& cut);

}  // namespace regard
