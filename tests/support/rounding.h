#pragma once

#include <algorithm>
#include <cmath>

#include "regard/dtype.h"

namespace regard::test {

// The nearest number that a floating-point type holds, or whole number for i8.
inline float rounded(float number, DType dtype) {
  if (dtype == DType::bf16) return static_cast<float>(BFloat16(number));
  if (dtype == DType::f16) return static_cast<float>(Float16(number));
  if (dtype == DType::f8_e4m3) return static_cast<float>(Float8E4M3(number));
  if (dtype == DType::f8_e5m2) return static_cast<float>(Float8E5M2(number));
  if (dtype == DType::i8) return std::nearbyint(number);
  return number;
}

// The most that storing a number as f32, bf16 or f16 changes it; nothing for f32, in which results are computed.
inline double storage_rounding(double number, DType dtype) {
  if (dtype == DType::bf16) return std::fabs(number) * 0x1p-8;
  if (dtype == DType::f16) return std::max(std::fabs(number) * 0x1p-11, 0x1p-25);  // half of its smallest number
  return 0.0;
}

}  // namespace regard::test
