// 2^x, lane by lane, with the same operations on every target.

#if defined(REGARD_KERNELS_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_EXP2_INL_H_
#undef REGARD_KERNELS_EXP2_INL_H_
#else
#define REGARD_KERNELS_EXP2_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// For x <= 1/2 and NaN: what a softmax needs. Below 2^-126 the result is 0, so that no denormal number ever slows a
// sum; NaN stays NaN. The polynomial of degree 6 is the minimax fit of the relative error to 2^r on [-1/2, 1/2] (2e-9,
// far below f32's rounding). Several vectors go step by step together: one alone is a chain of 15 operations, and the
// processor's queue of waiting operations holds three such chains, too few to keep it busy (measured: half the speed).
template <class D, size_t kCount, class V = hn::Vec<D>>
HWY_INLINE void exp2_nonpositive(D d, V (&x)[kCount]) {
  const hn::RebindToSigned<D> di;
  const auto smallest = hn::Set(d, -126.0F);
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it, plus the 127 that an exponent is stored with, in the low
  // bits of the sum.
  const auto magic = hn::Set(d, 12582912.0F + 127.0F);
  V shifted[kCount];
  V r[kCount];
  V p[kCount];
  for (size_t i = 0; i < kCount; ++i) shifted[i] = hn::Add(hn::Max(x[i], smallest), magic);
  for (size_t i = 0; i < kCount; ++i) r[i] = hn::Sub(x[i], hn::Sub(shifted[i], magic));
  for (size_t i = 0; i < kCount; ++i) p[i] = hn::MulAdd(hn::Set(d, 1.53533620e-4F), r[i], hn::Set(d, 1.33988739e-3F));
  for (const float coefficient : {9.61843692e-3F, 5.55033237e-2F, 2.40226477e-1F, 6.93147182e-1F, 1.0F})
    for (size_t i = 0; i < kCount; ++i) p[i] = hn::MulAdd(p[i], r[i], hn::Set(d, coefficient));
  for (size_t i = 0; i < kCount; ++i) {
    const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted[i])));
    x[i] = hn::IfThenZeroElse(hn::Lt(x[i], smallest), hn::Mul(p[i], power));
  }
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_nonpositive(D d, V x) {
  V one[1] = {x};
  exp2_nonpositive(d, one);
  return one[0];
}

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
