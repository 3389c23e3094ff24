#include "layers/input_rows.h"

#include <vector>

#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "layers/for_each_row.h"
#include "tensor/fail.h"

namespace regard {

void check_rmsnorm(const AttentionOptions& options, const AttentionConfig& config) {
  if (options.rmsnorm.empty()) return;
  require(config.rms_norm_eps.has_value(), "attention: rmsnorm is given, but rms_norm_eps is not set");
  require(options.rmsnorm.shape() == Shape{config.input_size()}, "attention: rmsnorm has shape {}, expected [{}]",
          options.rmsnorm.shape(), config.input_size());
  (void)options.rmsnorm.elements<float>();
}

Tensor residual_of(ConstTensorView input, const AttentionOptions& options, const Threads& threads) {
  Tensor residual = convert(options.residual, input.dtype());
  if (options.rmsnorm.empty()) return residual;
  const int64_t width = input.size(1);
  const int64_t row_bytes = width * static_cast<int64_t>(size_of(input.dtype()));
  for_each_row(input.size(0), threads, [&](int64_t token, int) {
    thread_local std::vector<float> row, other;
    row.resize(static_cast<size_t>(width));
    other.resize(row.size());
    std::byte* sum = residual.view().data() + token * row_bytes;
    kernels::load_floats(input.data() + token * row_bytes, input.dtype(), width, row.data());
    kernels::load_floats(sum, input.dtype(), width, other.data());
    for (size_t i = 0; i < row.size(); ++i) row[i] += other[i];
    kernels::store_floats(row.data(), width, input.dtype(), sum);
  });
  return residual;
}

ConstTensorView normed_rows(ConstTensorView x, ConstTensorView gain, const AttentionConfig& config,
                            Workspace& workspace) {
  if (gain.empty()) return x;
  const int64_t width = x.size(1);
  const int64_t row_bytes = width * static_cast<int64_t>(size_of(x.dtype()));
  const TensorView normed = workspace.memory().matrix(Workspace::Memory::Piece::normed, x.size(0), width);
  for_each_row(x.size(0), workspace.threads(), [&](int64_t token, int) {
    float* row = normed.as<float>() + token * width;
    kernels::load_floats(x.data() + token * row_bytes, x.dtype(), width, row);
    kernels::rms_norm(row, gain.as<float>(), *config.rms_norm_eps, width, row);
  });
  return normed;
}

}  // namespace regard
