#pragma once

#include <cstdint>

#include "regard/attention_config.h"
#include "regard/dtype.h"
#include "regard/model_spec.h"

// Work on single rows: norms, rotation, activation, conversion. Every sum runs in 16 fixed lanes.
namespace regard::kernels {

/// Normalises `count` elements in place; weight and bias have as many, or are null.
void normalize(NormKind kind, double eps, const float* weight, const float* bias, int64_t count, float* row);

/// out = x / sqrt(mean(x^2) + eps) * weight, all of `count` elements; weight may be null. x and out may be the same.
void rms_norm(const float* x, const float* weight, double eps, int64_t count, float* out);

/// Rotates the first 2 * half elements of each of `heads` heads, `stride` floats apart; cos and sin have `half`
/// elements.
void rotate(RotaryStyle style, const float* cos, const float* sin, int64_t half, int64_t heads, int64_t stride,
            float* row);

/// What happens between the matrices of an MLP.
struct ActivationOp {
  Activation kind = Activation::silu;
  float alpha = 1.702F;  ///< clamped_silu
  float limit = 7.0F;    ///< clamped_silu
};
/// gate[i] = f(gate[i]) * up[i], or as Activation::clamped_silu says; with up null, f(gate[i]) (clamped_silu: with up
/// 1). NaN stays NaN.
void activate(const ActivationOp& op, const float* up, int64_t count, float* gate);

/// to[i] += from[i] * factor, with two roundings.
void add_scaled(const float* from, float factor, int64_t count, float* to);

/// row[i] = cap * tanh(row[i] / cap), for a cap of more than 0.
void soft_cap(double cap, int64_t count, float* row);

/// to[i] = from[i] rounded to nearest even; f32, bf16 or f16.
void store_floats(const float* from, int64_t count, DType dtype, std::byte* to);
/// to[i] = from[i] as f32; f32, bf16 or f16.
void load_floats(const std::byte* from, DType dtype, int64_t count, float* to);

}  // namespace regard::kernels
