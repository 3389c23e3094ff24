// Partial attention: what attention over some of the keys gives, and how two of them merge.

#if defined(REGARD_KERNELS_PARTIAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_PARTIAL_INL_H_
#undef REGARD_KERNELS_PARTIAL_INL_H_
#else
#define REGARD_KERNELS_PARTIAL_INL_H_
#endif

#include "kernels/attend_layout.h"
#include "kernels/exp2-inl.h"
#include "kernels/microkernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {

// state = state merged with partial, in this order. Rows whose partial has no keys stay as they are. `factor` turns
// scores into exponents of 2; `factors` holds 2 * round_up(rows, kTile) numbers.
inline void merge(const Partial& partial, const Partial& state, int64_t rows, int64_t width, float factor,
                  float* factors) {
  float* ours = factors;
  float* theirs = factors + round_up(rows, kTile);
  // A vector may run over the last row. Where the rows are part of a partial, those after them merge with no keys.
  for (int64_t row = 0; row < rows; row += static_cast<int64_t>(kLanes)) {
    const auto old = hn::LoadU(F32(), state.maximum + row);
    const auto added = hn::LoadU(F32(), partial.maximum + row);
    const auto maximum = hn::IfThenElse(hn::Gt(added, old), added, old);
    // Of two infinities the difference would be NaN; a row without keys has no weights on either side.
    const auto base = hn::IfThenElse(hn::Eq(maximum, hn::Set(F32(), kMinusInfinity)), hn::Zero(F32()), maximum);
    const auto keep = exp2_nonpositive(F32(), hn::Mul(hn::Sub(old, base), hn::Set(F32(), factor)));
    const auto take = exp2_nonpositive(F32(), hn::Mul(hn::Sub(added, base), hn::Set(F32(), factor)));
    hn::StoreU(keep, F32(), ours + row);
    hn::StoreU(take, F32(), theirs + row);
    const auto sum =
        hn::MulAdd(hn::LoadU(F32(), partial.sum + row), take, hn::Mul(hn::LoadU(F32(), state.sum + row), keep));
    hn::StoreU(sum, F32(), state.sum + row);
    hn::StoreU(maximum, F32(), state.maximum + row);
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (partial.maximum[row] == kMinusInfinity && partial.sum[row] == 0.0F) continue;
    const auto keep = hn::Set(F32(), ours[row]);
    const auto take = hn::Set(F32(), theirs[row]);
    float* HWY_RESTRICT to = state.weighted + row * width;
    const float* HWY_RESTRICT from = partial.weighted + row * width;
    for (int64_t i = 0; i < width; i += static_cast<int64_t>(kLanes))
      hn::StoreU(hn::MulAdd(hn::LoadU(F32(), from + i), take, hn::Mul(hn::LoadU(F32(), to + i), keep)), F32(), to + i);
  }
}

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
