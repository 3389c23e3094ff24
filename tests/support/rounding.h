#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/cache_rows.h"
#include "regard/dtype.h"

namespace regard::test {

// The nearest number that a floating-point type holds, or whole number for i8 and i4.
inline float rounded(float number, DType dtype) {
  if (dtype == DType::bf16) return static_cast<float>(BFloat16(number));
  if (dtype == DType::f16) return static_cast<float>(Float16(number));
  if (dtype == DType::f8_e4m3) return static_cast<float>(Float8E4M3(number));
  if (dtype == DType::f8_e5m2) return static_cast<float>(Float8E5M2(number));
  if (dtype == DType::i8) return std::nearbyint(number);
  if (dtype == DType::i4) return std::clamp(std::nearbyint(number), -8.0F, 7.0F);
  return number;
}

// What the element of largest magnitude becomes in a cache type with scales.
inline float extreme_of(DType dtype) {
  if (dtype == DType::i8) return 127.0F;
  if (dtype == DType::i4) return -8.0F;
  return dtype == DType::f8_e4m3 ? 448.0F : 57344.0F;
}

// What a cache keeps of one token's elements of one head.
inline void round_as_cached(std::span<const float> row, DType dtype, double* out) {
  float extreme = 0;
  for (const float x : row)
    if (std::fabs(x) > std::fabs(extreme)) extreme = x;
  const bool scaled = kernels::has_token_scales(dtype) && extreme != 0;
  const float inverse = scaled ? extreme_of(dtype) / extreme : 1.0F;
  const float scale = scaled ? extreme / extreme_of(dtype) : 1.0F;
  for (const float x : row) *out++ = static_cast<double>(rounded(x * inverse, dtype)) * static_cast<double>(scale);
}

// The most that storing a number as f32, bf16 or f16 changes it; nothing for f32, in which results are computed.
inline double storage_rounding(double number, DType dtype) {
  if (dtype == DType::bf16) return std::fabs(number) * 0x1p-8;
  if (dtype == DType::f16) return std::max(std::fabs(number) * 0x1p-11, 0x1p-25);  // half of its smallest number
  return 0.0;
}

}  // namespace regard::test
