#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/panel.h"
#include "regard/tensor.h"
#include "regard/threads.h"
#include "regard/workspace.h"

namespace regard::kernels {

/// Rows of activations: f32, bf16 or f16, `stride` elements from one row to the next. With an index, row m is row
/// index[m] of `data`.
struct InputRows {
  const std::byte* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t depth = 0;
  int64_t stride = 0;
  const int64_t* index = nullptr;
};

/// One weight matrix that the rows are multiplied by: out[m][n] = sum over k of x[m][k] * w[n][k], plus bias[n].
struct Product {
  PanelView weights;
  int64_t columns = 0;  ///< Rows of the weight matrix.
  const float* bias = nullptr;
  float* out = nullptr;  ///< Of row 0 of the input, whichever rows are multiplied.
  int64_t out_stride = 0;
};

/// Rows first..first+count-1 of the input, and what they are multiplied by.
struct ProductGroup {
  int64_t first = 0;
  int64_t count = 0;
  std::span<const Product> products;
};

/// Memory that calls reuse.
class MatmulScratch {
 public:
  [[nodiscard]] float* rows(size_t count);
  [[nodiscard]] float* of_thread(int thread) {
    return reinterpret_cast<float*>(threads_[static_cast<size_t>(thread)].data());
  }
  void reserve(int threads, size_t count_per_thread);

 private:
  Buffer rows_;
  std::vector<Buffer> threads_;
};

/// All groups' products, at most 8 a group: threads take runs of columns of many groups at once. A row's output has the
/// same bits in every call that it is part of.
void matmul(const InputRows& input, std::span<const ProductGroup> groups, MatmulScratch& scratch,
            const Threads& threads, const WorkspaceOptions& options = {});

}  // namespace regard::kernels
