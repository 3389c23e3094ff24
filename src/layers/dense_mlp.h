#pragma once

#include "layers/mlp_matrices.h"

namespace regard {

// An MLP that every row passes: of one rank, its part of the width.
class DensePart {
 public:
  [[nodiscard]] static DensePart load(const DenseMlp& spec, const DenseWeights& weights, int64_t hidden_size,
                                      const Threads& threads, const Ranks& ranks);

  [[nodiscard]] const std::shared_ptr<const RowParallel>& sum() const { return share_.sum; }
  // Of partial results over ranks: the bias is added by the sum.
  [[nodiscard]] SummedRows summed_rows(Workspace& workspace) const { return {*share_.sum, matrices_.down, workspace}; }

  // f(gate(x)) * up(x) of this rank's width; lives until the workspace's next use.
  [[nodiscard]] TensorView inner(ConstTensorView x, Workspace& workspace) const;
  // The result of inner rows, where there is no sum.
  void finish(ConstTensorView inner, TensorView out, Workspace& workspace) const;
  // This rank's nodes' sums: [nodes][rows][hidden].
  void partials(ConstTensorView inner, std::span<float> out, Workspace& workspace) const;

  [[nodiscard]] int64_t bytes() const { return matrices_.bytes(); }
  [[nodiscard]] int64_t weights_per_token() const { return matrices_.weights(); }
  [[nodiscard]] double bytes_read(int64_t) const { return static_cast<double>(bytes()); }

 private:
  WidthShare share_;
  MlpMatrices matrices_;
};

}  // namespace regard
