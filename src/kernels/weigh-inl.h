// One row of scores becomes weights.

#if defined(REGARD_KERNELS_WEIGH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_WEIGH_INL_H_
#undef REGARD_KERNELS_WEIGH_INL_H_
#else
#define REGARD_KERNELS_WEIGH_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>

#include "kernels/attend_layout.h"
#include "kernels/exp2-inl.h"
#include "kernels/microkernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {

// How scores become exponents of 2: factor * score; under a soft cap the score is tanh(inner * product) first.
struct ScoreScale {
  // Differences of scores are scaled in f32; a score itself, which may be far from 0, in double.
  double exact_factor;
  float factor;
  float inner;  // 0: no soft cap

  ScoreScale(float scale, float soft_cap)
      : exact_factor(static_cast<double>(soft_cap == 0.0F ? scale : soft_cap) * kLog2E),
        factor(static_cast<float>(exact_factor)),
        inner(soft_cap == 0.0F ? 0.0F : scale / soft_cap) {}
};

// numbers[key] *= scales[key]
inline void scale_keys(float* HWY_RESTRICT numbers, int64_t begin, int64_t end, const float* HWY_RESTRICT scales) {
  for (int64_t key = begin; key < end; key += static_cast<int64_t>(kLanes))
    hn::StoreU(hn::Mul(hn::LoadU(F32(), numbers + key), hn::LoadU(F32(), scales + key)), F32(), numbers + key);
}

inline void cap_scores(float* HWY_RESTRICT scores, int64_t begin, int64_t end, float inner) {
  for (int64_t key = begin; key < end; key += static_cast<int64_t>(kLanes))
    hn::StoreU(hn::Tanh(F32(), hn::Mul(hn::LoadU(F32(), scores + key), hn::Set(F32(), inner))), F32(), scores + key);
}

// score = 2^(factor * (score - top)) for some tiles of keys, added to the running sums of their lanes.
template <int64_t kTiles>
HWY_INLINE void exponentiate(float* HWY_RESTRICT scores, Vec top, Vec factor, Vec (&sums)[kVectors]) {
  Vec x[kTiles * kVectors];
  for (size_t i = 0; i < kTiles * kVectors; ++i)
    x[i] = hn::Mul(hn::Sub(hn::LoadU(F32(), scores + i * kLanes), top), factor);
  exp2_nonpositive(F32(), x);
  for (size_t i = 0; i < kTiles * kVectors; ++i) {
    hn::StoreU(x[i], F32(), scores + i * kLanes);
    sums[i % kVectors] = hn::Add(sums[i % kVectors], x[i]);
  }
}

// Turns the scores of a block's keys into weights 2^(factor * (score - maximum)), 0 outside `seen` up to the next
// multiple of kTile on both sides. The 16 running sums are those of the keys with equal index modulo 16, whatever the
// vector width. A NaN among the visible scores makes its own weight NaN, and so the sum and the output. The scales, by
// key or null, are those of caches of 8 and 4 bits: the keys' multiply the scores, the values' the weights, after the
// sum.
inline void weigh(float* HWY_RESTRICT scores, KeyRange seen, const ScoreScale& scale, const float* key_scales,
                  const float* value_scales, float& maximum, float& sum) {
  const int64_t begin = seen.first / kTile * kTile;
  const int64_t end = round_up(seen.last + 1, kTile);
  if (key_scales != nullptr) scale_keys(scores, begin, end, key_scales);
  if (scale.inner != 0.0F) cap_scores(scores, begin, end, scale.inner);
  std::fill(scores + begin, scores + seen.first, kMinusInfinity);
  std::fill(scores + seen.last + 1, scores + end, kMinusInfinity);

  Vec largest[kVectors];
  for (size_t v = 0; v < kVectors; ++v) largest[v] = hn::Set(F32(), kMinusInfinity);
  for (int64_t key = begin; key < end; key += kTile) {
    REGARD_UNROLL
    for (size_t v = 0; v < kVectors; ++v) largest[v] = hn::Max(largest[v], hn::LoadU(F32(), scores + key + v * kLanes));
  }
  for (size_t v = 1; v < kVectors; ++v) largest[0] = hn::Max(largest[0], largest[v]);
  // Scores that all overflowed to -inf have no weight; the difference of two infinities would be NaN.
  const auto largest_score = hn::MaxOfLanes(F32(), largest[0]);
  const auto top = hn::IfThenZeroElse(hn::Eq(largest_score, hn::Set(F32(), kMinusInfinity)), largest_score);
  const auto factor = hn::Set(F32(), scale.factor);

  Vec sums[kVectors];
  for (size_t v = 0; v < kVectors; ++v) sums[v] = hn::Zero(F32());
  constexpr int64_t kTilesAtOnce = 4 / kVectors > 0 ? 4 / kVectors : 1;
  int64_t key = begin;
  for (; key + kTilesAtOnce * kTile <= end; key += kTilesAtOnce * kTile)
    exponentiate<kTilesAtOnce>(scores + key, top, factor, sums);
  for (; key < end; key += kTile) exponentiate<1>(scores + key, top, factor, sums);
  maximum = hn::GetLane(largest_score);
  sum = sum_of_tile(sums);
  if (value_scales != nullptr) scale_keys(scores, begin, end, value_scales);
}

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
