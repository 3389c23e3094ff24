#pragma once

#include <cstdint>
#include <memory>

#include "kernels/rows.h"
#include "layers/mlp.h"
#include "linear/row_parallel.h"
#include "parallel/even_parts.h"

namespace regard {

// What one rank has of an MLP's inner width, and how the ranks' partial results are summed.
struct WidthShare {
  ElementRange own;
  std::shared_ptr<const RowParallel> sum;  // null: this rank's product is the whole

  // Of one rank the whole width; `sum` too with ranks, or where bits may not depend on how many there are.
  [[nodiscard]] static WidthShare of(int64_t width, const Ranks& ranks);
};

// The matrices of one dense MLP, of a share of its width.
struct MlpMatrices {
  Linear gate, up, down;  // gate is empty where there is none
  kernels::ActivationOp activation;

  // `down_bias`: whether this rank adds it. Throws Error where weights and spec disagree.
  [[nodiscard]] static MlpMatrices load(const DenseMlp& spec, const DenseWeights& weights, int64_t hidden_size,
                                        const WidthShare& share, bool down_bias, const Threads& threads);

  // inner = f(inner) * times, where they are what gate and up have made of x; without a gate `inner` is up's result,
  // and `times` is empty.
  void activate(TensorView inner, TensorView times, const Threads& threads) const;

  [[nodiscard]] int64_t bytes() const { return gate.bytes() + up.bytes() + down.bytes(); }
  // Numbers of the matrices.
  [[nodiscard]] int64_t weights() const;
};

}  // namespace regard
