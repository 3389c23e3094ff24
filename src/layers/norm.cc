#include "layers/norm.h"

#include <algorithm>

#include "kernels/rows.h"
#include "layers/for_each_row.h"
#include "tensor/fail.h"

namespace regard {

// 1 + w is rounded to f32 once, as transformers does.
Norm::Norm(const NormSpec& spec, std::vector<float> weight, std::vector<float> bias)
    : spec_(spec), weight_(std::move(weight)), bias_(std::move(bias)) {
  require(bias_.empty() == !spec.has_bias, "norm: a bias is {}, but the model has {}",
          bias_.empty() ? "missing" : "given", spec.has_bias ? "one" : "none");
  if (spec_.kind != NormKind::rms_plus_one) return;
  for (float& gain : weight_) gain += 1.0F;
  spec_.kind = NormKind::rms;
}

void Norm::apply(ConstTensorView x, TensorView out, const Threads& threads, std::span<const int64_t> rows) const {
  const auto width = static_cast<int64_t>(weight_.size());
  for_each_row(out.size(0), threads, [&](int64_t row, int) {
    const float* from = x.as<float>() + (rows.empty() ? row : rows[static_cast<size_t>(row)]) * width;
    float* to = out.as<float>() + row * width;
    if (spec_.kind == NormKind::rms) return kernels::rms_norm(from, weight_.data(), spec_.eps, width, to);
    std::copy_n(from, width, to);
    kernels::normalize(spec_.kind, spec_.eps, weight_.data(), bias_.empty() ? nullptr : bias_.data(), width, to);
  });
}

}  // namespace regard
