#pragma once

#include <array>
#include <vector>

#include "kernels/attend.h"
#include "kernels/matmul.h"
#include "regard/workspace.h"

namespace regard {

/// Named pieces of memory, each as large as the largest call asked for.
struct Workspace::Memory {
  enum class Piece : uint8_t {
    queries,
    keys,
    values,
    attended,
    tail_keys,
    tail_values,
    tail_key_scales,
    tail_value_scales,
    normed,
    cos,
    sin,
    hidden,
    own_hidden,
    all_hidden,
    branch,
    gate,
    up,
    logits,
    count
  };

  kernels::MatmulScratch matmul;
  kernels::AttendScratch attend;
  std::vector<kernels::AttendSpan> spans;
  std::vector<Interval> visible;
  std::vector<int64_t> positions;
  std::vector<int64_t> piece_positions;
  std::vector<int64_t> origins;
  uint64_t angles_key = 0;  ///< Of what cos and sin hold: the next layer most often wants the same.
  std::vector<float> row;
  std::vector<Buffer> terms;  // of sums over trees, by level

  /// Piece as an f32 matrix of that shape. What it held before is lost.
  [[nodiscard]] TensorView matrix(Piece piece, int64_t rows, int64_t columns) {
    Buffer& buffer = pieces_[static_cast<size_t>(piece)];
    const auto bytes = static_cast<size_t>(rows * columns) * sizeof(float);
    if (buffer.size() < bytes) buffer = Buffer(bytes);
    return TensorView(buffer.data(), DType::f32, {rows, columns});
  }

 private:
  std::array<Buffer, static_cast<size_t>(Piece::count)> pieces_;
};

}  // namespace regard
