// Rows of numbers between the types of activations (f32, bf16, f16) and f32, compiled once per target.

#if defined(REGARD_KERNELS_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_CONVERT_INL_H_
#undef REGARD_KERNELS_CONVERT_INL_H_
#else
#define REGARD_KERNELS_CONVERT_INL_H_
#endif

#include <cstring>

#include "kernels/microkernel-inl.h"
#include "regard/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {

template <class Element, class T>
void load_halves(const std::byte* from, int64_t count, float* HWY_RESTRICT to) {
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += static_cast<int64_t>(kLanes))
    hn::StoreU(Element::load(from + i * static_cast<int64_t>(sizeof(T)), 0), F32(), to + i);
  for (; i < count; ++i) to[i] = static_cast<float>(reinterpret_cast<const T*>(from)[i]);
}

// to[i] = from[i] as f32.
inline void load_row(const std::byte* from, DType dtype, int64_t count, float* HWY_RESTRICT to) {
  if (dtype == DType::bf16)
    load_halves<PlainBF16, BFloat16>(from, count, to);
  else if (dtype == DType::f16)
    load_halves<PlainF16, Float16>(from, count, to);
  else
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

// f32 lanes as bf16 bits, rounded to nearest even; NaN stays NaN.
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, F32>> bf16_bits(Vec x) {
  const hn::RebindToUnsigned<F32> du;
  const hn::RebindToSigned<F32> di;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(hn::Set(du, 0x7FFF), odd));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  const auto chosen = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded);
  return hn::DemoteTo(hn::Rebind<uint16_t, F32>(), hn::BitCast(di, hn::ShiftRight<16>(chosen)));
}

// to[i] = from[i] rounded to nearest even.
inline void store_row(const float* HWY_RESTRICT from, int64_t count, DType dtype, std::byte* to) {
  if (dtype == DType::f32) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  constexpr auto kStep = static_cast<int64_t>(kLanes);
  int64_t i = 0;
  if (dtype == DType::f16) {
    const hn::Rebind<hwy::float16_t, F32> narrow;
    for (; i + kStep <= count; i += kStep)
      hn::StoreU(hn::DemoteTo(narrow, hn::LoadU(F32(), from + i)), narrow, reinterpret_cast<hwy::float16_t*>(to) + i);
    for (; i < count; ++i) reinterpret_cast<Float16*>(to)[i] = Float16(from[i]);
  } else {
    const hn::Rebind<uint16_t, F32> narrow;
    for (; i + kStep <= count; i += kStep)
      hn::StoreU(bf16_bits(hn::LoadU(F32(), from + i)), narrow, reinterpret_cast<uint16_t*>(to) + i);
    for (; i < count; ++i) reinterpret_cast<BFloat16*>(to)[i] = BFloat16(from[i]);
  }
}

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
