// The vectors of a target, and sums in an order that does not depend on their width.

#if defined(REGARD_KERNELS_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_VECTORS_INL_H_
#undef REGARD_KERNELS_VECTORS_INL_H_
#else
#define REGARD_KERNELS_VECTORS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "kernels/panel.h"

#ifndef REGARD_UNROLL
#define REGARD_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define REGARD_UNROLL REGARD_PRAGMA(clang loop unroll(full))
#else
#define REGARD_UNROLL REGARD_PRAGMA(GCC unroll 32)
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of at most 16 lanes, so that a panel row is a whole number of them on every target.
using F32 = hn::CappedTag<float, static_cast<size_t>(kTile)>;
using Vec = hn::Vec<F32>;
inline constexpr size_t kLanes = hn::MaxLanes(F32());
inline constexpr size_t kVectors = kTile / kLanes;  // of one panel row

// The sum of a vector's lanes: i and i + n / 2 first, down to one.
template <class D>
HWY_INLINE float sum_of_lanes([[maybe_unused]] D d, hn::Vec<D> v) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (hn::MaxLanes(D()) > 1) {
    const hn::Half<D> half;
    return sum_of_lanes(half, hn::Add(hn::LowerHalf(half, v), hn::LowerHalf(half, hn::ConcatUpperUpper(d, v, v))));
  }
#endif
  return hn::GetLane(v);
}

// Sixteen running sums, by index modulo 16 whatever the vector width, added in a fixed tree: i and i + 8, then i and
// i + 4, 2, 1.
HWY_INLINE float sum_of_tile(const Vec (&sums)[kVectors]) {
  Vec all[kVectors];
  for (size_t v = 0; v < kVectors; ++v) all[v] = sums[v];
  for (size_t width = kVectors / 2; width > 0; width /= 2)
    for (size_t v = 0; v < width; ++v) all[v] = hn::Add(all[v], all[v + width]);
  return sum_of_lanes(F32(), all[0]);
}

// Into the L2 cache: what comes next is larger than L1, and would push out what is in use (measured: a third slower).
HWY_INLINE void prefetch(const std::byte* data) { __builtin_prefetch(data, 0, 2); }

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
