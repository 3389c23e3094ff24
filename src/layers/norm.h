#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "regard/model_spec.h"
#include "regard/tensor.h"
#include "regard/threads.h"

namespace regard {

// A norm over the rows of the residual stream, with its weights.
class Norm {
 public:
  // weight [hidden]; bias [hidden] where the spec has one, else empty.
  Norm(const NormSpec& spec, std::vector<float> weight, std::vector<float> bias);

  // out[i] = norm(x[rows[i]]), or of row i where `rows` is empty: f32, dense, of the weight's width. x and out may be
  // the same where they have the same rows.
  void apply(ConstTensorView x, TensorView out, const Threads& threads, std::span<const int64_t> rows = {}) const;

 private:
  NormSpec spec_;
  std::vector<float> weight_;  // what the row is multiplied by
  std::vector<float> bias_;
};

}  // namespace regard
