#include "layers/dense_mlp.h"

#include <array>

#include "kernels/workspace.h"

namespace regard {

using Memory = Workspace::Memory;

DensePart DensePart::load(const DenseMlp& spec, const DenseWeights& weights, int64_t hidden_size,
                          const Threads& threads, const Ranks& ranks) {
  DensePart part;
  part.share_ = WidthShare::of(spec.width, ranks);
  part.matrices_ = MlpMatrices::load(spec, weights, hidden_size, part.share_, true, threads);
  return part;
}

TensorView DensePart::inner(ConstTensorView x, Workspace& workspace) const {
  Memory& memory = workspace.memory();
  const int64_t width = share_.own.count;
  const TensorView gate = memory.matrix(Memory::Piece::gate, x.size(0), width);
  if (width == 0) return gate;
  TensorView up;
  if (matrices_.gate.empty()) {
    apply(std::array{&matrices_.up}, x, std::array{gate}, workspace);
  } else {
    up = memory.matrix(Memory::Piece::up, x.size(0), width);
    apply(std::array{&matrices_.gate, &matrices_.up}, x, std::array{gate, up}, workspace);
  }
  matrices_.activate(gate, up, workspace.threads());
  return gate;
}

void DensePart::finish(ConstTensorView inner, TensorView out, Workspace& workspace) const {
  apply(std::array{&matrices_.down}, inner, std::array{out}, workspace);
}

void DensePart::partials(ConstTensorView inner, std::span<float> out, Workspace& workspace) const {
  share_.sum->multiply(matrices_.down.weight(), inner, out, workspace);
}

}  // namespace regard
