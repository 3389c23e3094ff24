#include "kernels/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rows.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because these are compiled once per target.
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
void silu_times(const float* up, int64_t count, float* gate) {
  constexpr float kLog2E = 1.44269504F;
  const auto silu = [](Vec x) HWY_ATTR {
    const auto one = hn::Set(F32(), 1.0F);
    const auto power = exp2_nonpositive(F32(), hn::Mul(hn::Abs(x), hn::Set(F32(), -kLog2E)));
    const auto numerator = hn::IfThenElse(hn::Lt(x, hn::Zero(F32())), power, one);
    return hn::Mul(x, hn::Div(numerator, hn::Add(one, power)));
  };
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += static_cast<int64_t>(kLanes))
    hn::StoreU(hn::Mul(silu(hn::LoadU(F32(), gate + i)), hn::LoadU(F32(), up + i)), F32(), gate + i);
  for (; i < count; ++i) gate[i] = hn::GetLane(silu(hn::Set(F32(), gate[i]))) * up[i];
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
HWY_EXPORT(silu_times);
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
void silu_times(const float* up, int64_t count, float* gate) { HWY_DYNAMIC_DISPATCH(silu_times)(up, count, gate); }
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
