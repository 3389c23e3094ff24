#pragma once

#include <array>
#include <vector>

#include "layers/mlp_matrices.h"

namespace regard {

// MLPs of which each row passes those that the router chooses for it: of one rank, its part of every expert's width.
// The outputs of a row's experts are added in order of the experts' index, as transformers does: scores that nearly tie
// then change no order of a sum, and a row's bits depend on nothing but itself.
class ExpertsPart {
 public:
  [[nodiscard]] static ExpertsPart load(const ExpertsMlp& spec, const ExpertsWeights& weights, int64_t hidden_size,
                                        const Threads& threads, const Ranks& ranks);

  [[nodiscard]] const std::shared_ptr<const RowParallel>& sum() const { return share_.sum; }
  // Of partial results over ranks: the biases are in those of the first columns.
  [[nodiscard]] SummedRows summed_rows(Workspace& workspace) const { return {*share_.sum, workspace}; }

  // Each row's f(gate(x)) * up(x) of its experts, which the workspace's memory tells apart; lives as it does.
  [[nodiscard]] TensorView inner(ConstTensorView x, Workspace& workspace) const;
  // The result of inner rows, where there is no sum.
  void finish(ConstTensorView inner, TensorView out, Workspace& workspace) const;
  // This rank's nodes' sums: [nodes][rows][hidden].
  void partials(ConstTensorView inner, std::span<float> out, Workspace& workspace) const;

  [[nodiscard]] int64_t bytes() const;
  [[nodiscard]] int64_t weights_per_token() const;
  [[nodiscard]] double bytes_read(int64_t tokens) const;

 private:
  void route(ConstTensorView x, Workspace& workspace) const;
  void sort_rows(int64_t tokens, Workspace& workspace) const;
  void add_biases(TensorView rows, Workspace& workspace) const;
  void combine(ConstTensorView rows, TensorView out, Workspace& workspace) const;

  ExpertsMlp spec_;
  WidthShare share_;
  Linear router_;
  std::vector<float> selection_bias_;
  std::vector<MlpMatrices> experts_;
  // Of each expert: gate and up, or up alone; and down.
  std::vector<std::vector<const Linear*>> first_layers_;
  std::vector<const Linear*> last_layers_;
};

}  // namespace regard
