#pragma once

#include "regard/dtype.h"

namespace regard::test {

// The nearest number that a type holds: f32, bf16 or f16.
inline float rounded(float number, DType dtype) {
  if (dtype == DType::bf16) return static_cast<float>(BFloat16(number));
  if (dtype == DType::f16) return static_cast<float>(Float16(number));
  return number;
}

// The relative error of rounding to a type; 0 for f32, whose roundings the results are made of anyway.
inline double rounding_of(DType dtype) { return dtype == DType::bf16 ? 0x1p-9 : dtype == DType::f16 ? 0x1p-11 : 0.0; }

}  // namespace regard::test
