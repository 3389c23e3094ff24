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
// far below f32's rounding).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_nonpositive(D d, V x) {
  const hn::RebindToSigned<D> di;
  const auto smallest = hn::Set(d, -126.0F);
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it, plus the 127 that an exponent is stored with, in the low
  // bits of the sum.
  const auto magic = hn::Set(d, 12582912.0F + 127.0F);
  const V shifted = hn::Add(hn::Max(x, smallest), magic);
  const V r = hn::Sub(x, hn::Sub(shifted, magic));
  V p = hn::Set(d, 1.53533620e-4F);
  p = hn::MulAdd(p, r, hn::Set(d, 1.33988739e-3F));
  p = hn::MulAdd(p, r, hn::Set(d, 9.61843692e-3F));
  p = hn::MulAdd(p, r, hn::Set(d, 5.55033237e-2F));
  p = hn::MulAdd(p, r, hn::Set(d, 2.40226477e-1F));
  p = hn::MulAdd(p, r, hn::Set(d, 6.93147182e-1F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  const V result = hn::Mul(p, power);
  return hn::IfThenZeroElse(hn::Lt(x, smallest), result);
}

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
