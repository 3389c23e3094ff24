#include "kernels/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rows.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because these are compiled once per target.
#include <hwy/contrib/math/math-inl.h>

#include "kernels/convert-inl.h"
#include "kernels/exp2-inl.h"
#include "kernels/microkernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace {

// Sixteen running sums, by index modulo 16, whatever the vector width; then a fixed tree.
class RunningSums {
 public:
  HWY_INLINE RunningSums() {
    REGARD_UNROLL
    for (size_t v = 0; v < kVectors; ++v) sums_[v] = hn::Zero(F32());
  }
  HWY_INLINE void add(size_t vector, Vec value) { sums_[vector] = hn::Add(sums_[vector], value); }
  HWY_INLINE void add_product(size_t vector, Vec a, Vec b) { sums_[vector] = hn::MulAdd(a, b, sums_[vector]); }
  [[nodiscard]] float total() const { return sum_of_tile(sums_); }

 private:
  Vec sums_[kVectors];
};

// Calls visit(vector, offset, load) for all elements, 16 at a time; the last ones come from a zero-padded copy.
template <class Visit>
HWY_INLINE void for_each_vector(const float* row, int64_t count, Visit visit) {
  int64_t i = 0;
  for (; i + kTile <= count; i += kTile)
    for (size_t v = 0; v < kVectors; ++v) visit(v, hn::LoadU(F32(), row + i + v * kLanes));
  if (i == count) return;
  alignas(64) float rest[kTile] = {};
  std::copy(row + i, row + count, rest);
  for (size_t v = 0; v < kVectors; ++v) visit(v, hn::Load(F32(), rest + v * kLanes));
}

float sum_of_squares(const float* row, int64_t count) {
  RunningSums sums;
  for_each_vector(row, count, [&](size_t v, Vec x) HWY_ATTR { sums.add_product(v, x, x); });
  return sums.total();
}

float sum(const float* row, int64_t count) {
  RunningSums sums;
  for_each_vector(row, count, [&](size_t v, Vec x) HWY_ATTR { sums.add(v, x); });
  return sums.total();
}

void rms_norm(const float* x, const float* weight, double eps, int64_t count, float* out) {
  const double mean = static_cast<double>(sum_of_squares(x, count)) / static_cast<double>(count);
  const auto factor = static_cast<float>(1.0 / std::sqrt(mean + eps));
  if (weight == nullptr)
    for (int64_t i = 0; i < count; ++i) out[i] = x[i] * factor;
  else
    for (int64_t i = 0; i < count; ++i) out[i] = x[i] * factor * weight[i];
}

void layer_norm(const float* weight, const float* bias, double eps, int64_t count, float* row) {
  const auto mean = static_cast<float>(static_cast<double>(sum(row, count)) / static_cast<double>(count));
  for (int64_t i = 0; i < count; ++i) row[i] -= mean;
  const double variance = static_cast<double>(sum_of_squares(row, count)) / static_cast<double>(count);
  const auto factor = static_cast<float>(1.0 / std::sqrt(variance + eps));
  for (int64_t i = 0; i < count; ++i)
    row[i] = row[i] * factor * (weight == nullptr ? 1.0F : weight[i]) + (bias == nullptr ? 0.0F : bias[i]);
}

void normalize(NormKind kind, double eps, const float* weight, const float* bias, int64_t count, float* row) {
  if (kind == NormKind::layer_norm) return layer_norm(weight, bias, eps, count, row);
  rms_norm(row, nullptr, eps, count, row);
  if (weight == nullptr) return;
  const float offset = kind == NormKind::rms_plus_one ? 1.0F : 0.0F;
  for (int64_t i = 0; i < count; ++i) row[i] *= offset + weight[i];
}

void rotate_pair(float cos, float sin, float& a, float& b) {
  const float x = a;
  const float y = b;
  a = x * cos - y * sin;
  b = y * cos + x * sin;
}

void rotate(RotaryStyle style, const float* cos, const float* sin, int64_t half, int64_t heads, int64_t stride,
            float* row) {
  for (int64_t head = 0; head < heads; ++head, row += stride) {
    if (style == RotaryStyle::interleaved)
      for (int64_t i = 0; i < half; ++i) rotate_pair(cos[i], sin[i], row[2 * i], row[2 * i + 1]);
    else
      for (int64_t i = 0; i < half; ++i) rotate_pair(cos[i], sin[i], row[i], row[i + half]);
  }
}

// 1 / (1 + exp(-x)) from an exp of -|x|, which neither overflows nor loses digits.
HWY_INLINE Vec sigmoid(Vec x) {
  constexpr float kLog2E = 1.44269504F;
  const auto one = hn::Set(F32(), 1.0F);
  const auto power = exp2_nonpositive(F32(), hn::Mul(hn::Abs(x), hn::Set(F32(), -kLog2E)));
  const auto numerator = hn::IfThenElse(hn::Lt(x, hn::Zero(F32())), power, one);
  return hn::Div(numerator, hn::Add(one, power));
}

// The share of a normal distribution above |x|, Q = exp(-x^2 / 2) * u P(u) with u = 1 / (1 + 0.24 |x|): a minimax fit
// of degree 9 to the relative error on [0, 14] (3e-9), beyond which Q is no f32. Below 0 that is Phi, and loses no
// digits as 1 + erf(x) does.
HWY_INLINE Vec normal_cdf(Vec x) {
  constexpr float kHalfLog2E = 0.721347520F;
  const auto one = hn::Set(F32(), 1.0F);
  const auto u = hn::Div(one, hn::MulAdd(hn::Abs(x), hn::Set(F32(), 0.24F), one));
  auto p = hn::Set(F32(), 0.0254736544F);
  for (const float coefficient : {-0.124336263F, 0.204727734F, -0.143198683F, 0.140492505F, 0.0287117104F,
                                  0.0875526894F, 0.0889834153F, 0.0958508027F, 0.0957424372F})
    p = hn::MulAdd(p, u, hn::Set(F32(), coefficient));
  const auto power = exp2_nonpositive(F32(), hn::Mul(hn::Mul(x, x), hn::Set(F32(), -kHalfLog2E)));
  const auto above = hn::Mul(hn::Mul(u, p), power);
  return hn::IfThenElse(hn::Lt(x, hn::Zero(F32())), above, hn::Sub(one, above));
}

// (1 + tanh(z)) / 2 is the sigmoid of 2 z, with z = sqrt(2 / pi) (x + 0.044715 x^3).
HWY_INLINE Vec normal_cdf_by_tanh(Vec x) {
  const auto cubic = hn::MulAdd(hn::Mul(x, x), hn::Set(F32(), 1.59576912F * 0.044715F), hn::Set(F32(), 1.59576912F));
  return sigmoid(hn::Mul(x, cubic));
}

// NaN is not less than anything, and stays.
HWY_INLINE Vec at_most(Vec x, Vec limit) { return hn::IfThenElse(hn::Lt(limit, x), limit, x); }
HWY_INLINE Vec at_least(Vec x, Vec limit) { return hn::IfThenElse(hn::Lt(x, limit), limit, x); }

// gate[i] = apply(gate[i], up[i]), or of gate[i] alone where there is no `up`.
template <class Apply>
HWY_INLINE void for_each_pair(const float* up, int64_t count, float* gate, Apply apply) {
  const auto one = hn::Set(F32(), 1.0F);
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += static_cast<int64_t>(kLanes))
    hn::StoreU(apply(hn::LoadU(F32(), gate + i), up == nullptr ? one : hn::LoadU(F32(), up + i)), F32(), gate + i);
  for (; i < count; ++i)
    gate[i] = hn::GetLane(apply(hn::Set(F32(), gate[i]), up == nullptr ? one : hn::Set(F32(), up[i])));
}

void activate(const ActivationOp& op, const float* up, int64_t count, float* gate) {
  switch (op.kind) {
    case Activation::silu:
      return for_each_pair(up, count, gate, [](Vec x, Vec y) HWY_ATTR { return hn::Mul(hn::Mul(x, sigmoid(x)), y); });
    case Activation::gelu:
      return for_each_pair(up, count, gate,
                           [](Vec x, Vec y) HWY_ATTR { return hn::Mul(hn::Mul(x, normal_cdf(x)), y); });
    case Activation::gelu_tanh:
      return for_each_pair(up, count, gate,
                           [](Vec x, Vec y) HWY_ATTR { return hn::Mul(hn::Mul(x, normal_cdf_by_tanh(x)), y); });
    case Activation::relu:
      return for_each_pair(up, count, gate,
                           [](Vec x, Vec y) HWY_ATTR { return hn::Mul(at_least(x, hn::Zero(F32())), y); });
    case Activation::clamped_silu: {
      const auto alpha = hn::Set(F32(), op.alpha);
      const auto limit = hn::Set(F32(), op.limit);
      return for_each_pair(up, count, gate, [&](Vec x, Vec y) HWY_ATTR {
        const auto g = at_most(x, limit);
        const auto u = at_least(at_most(y, limit), hn::Neg(limit));
        return hn::Mul(hn::Add(u, hn::Set(F32(), 1.0F)), hn::Mul(g, sigmoid(hn::Mul(g, alpha))));
      });
    }
  }
}

void add_scaled(const float* from, float factor, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i] * factor;
}

void soft_cap(float cap, int64_t count, float* row) {
  const auto capped = [cap](Vec x) HWY_ATTR {
    return hn::Mul(hn::Set(F32(), cap), hn::Tanh(F32(), hn::Div(x, hn::Set(F32(), cap))));
  };
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += static_cast<int64_t>(kLanes))
    hn::StoreU(capped(hn::LoadU(F32(), row + i)), F32(), row + i);
  for (; i < count; ++i) row[i] = hn::GetLane(capped(hn::Set(F32(), row[i])));
}

}  // namespace
}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace regard::kernels {
namespace {
HWY_EXPORT(normalize);
HWY_EXPORT(rms_norm);
HWY_EXPORT(rotate);
HWY_EXPORT(soft_cap);
HWY_EXPORT(activate);
HWY_EXPORT(add_scaled);
HWY_EXPORT(store_row);
HWY_EXPORT(load_row);
}  // namespace

void normalize(NormKind kind, double eps, const float* weight, const float* bias, int64_t count, float* row) {
  HWY_DYNAMIC_DISPATCH(normalize)(kind, eps, weight, bias, count, row);
}
void rms_norm(const float* x, const float* weight, double eps, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x, weight, eps, count, out);
}
void rotate(RotaryStyle style, const float* cos, const float* sin, int64_t half, int64_t heads, int64_t stride,
            float* row) {
  HWY_DYNAMIC_DISPATCH(rotate)(style, cos, sin, half, heads, stride, row);
}
void soft_cap(double cap, int64_t count, float* row) {
  HWY_DYNAMIC_DISPATCH(soft_cap)(static_cast<float>(cap), count, row);
}
void activate(const ActivationOp& op, const float* up, int64_t count, float* gate) {
  HWY_DYNAMIC_DISPATCH(activate)(op, up, count, gate);
}
void add_scaled(const float* from, float factor, int64_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(add_scaled)(from, factor, count, to);
}
void store_floats(const float* from, int64_t count, DType dtype, std::byte* to) {
  if (count == 0) return;  // pointers may be null then
  HWY_DYNAMIC_DISPATCH(store_row)(from, count, dtype, to);
}
void load_floats(const std::byte* from, DType dtype, int64_t count, float* to) {
  if (count == 0) return;
  HWY_DYNAMIC_DISPATCH(load_row)(from, dtype, count, to);
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
