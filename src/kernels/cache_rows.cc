#include "kernels/cache_rows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/panel_elements.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cache_rows.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because it is compiled once per target.
#include "kernels/convert-inl.h"

#ifndef REGARD_KERNELS_CACHE_ROWS_ONCE_
#define REGARD_KERNELS_CACHE_ROWS_ONCE_
namespace regard::kernels {

// What the element of a token with the largest magnitude becomes, for a type with scales. -8 has no opposite among
// 4 bits: there the scale takes the sign.
constexpr float extreme_of(DType dtype) { return dtype == DType::i4 ? -8.0F : largest_of_cache(dtype); }

// The microkernel reads e4m3 as 2^-8 of its number.
constexpr float read_factor(DType dtype) { return dtype == DType::f8_e4m3 ? 256.0F : 1.0F; }

// to[to_lane] = from[from_lane] of two panel rows.
inline void copy_element(const std::byte* from, int64_t from_lane, int64_t row_bytes, std::byte* to, int64_t to_lane) {
  std::byte bits[sizeof(float)];
  get_element(from, row_bytes, from_lane, bits);
  put_element(bits, to, row_bytes, to_lane);
}

}  // namespace regard::kernels
#endif  // once

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace {

using Bytes = hn::Rebind<uint8_t, F32>;

HWY_INLINE hn::Vec<Bytes> to_i8(Vec x) {
  return hn::BitCast(Bytes(), hn::DemoteTo(hn::Rebind<int8_t, F32>(), hn::NearestInt(x)));
}

// f32 lanes, none larger than the type's largest number, as fp8 bits, rounded to nearest even.
template <int kMantissa, int kBias>
HWY_INLINE hn::Vec<Bytes> to_f8(Vec x) {
  const hn::RebindToUnsigned<F32> du;
  const hn::RebindToSigned<F32> di;
  constexpr int kShift = 23 - kMantissa;
  const auto magnitude = hn::Abs(x);
  const auto bits = hn::BitCast(du, magnitude);
  const auto odd = hn::And(hn::ShiftRight<kShift>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(hn::Set(du, (1U << (kShift - 1)) - 1), odd));
  const auto normal = hn::Sub(hn::ShiftRight<kShift>(rounded), hn::Set(du, (127U - kBias) << kMantissa));
  // Below the smallest normal number the unit is fixed: adding 2^23 units leaves their count in the low bits.
  constexpr auto kMagic = static_cast<float>(1U << (24 - kBias - kMantissa));
  const auto units =
      hn::Sub(hn::BitCast(du, hn::Add(magnitude, hn::Set(F32(), kMagic))), hn::BitCast(du, hn::Set(F32(), kMagic)));
  constexpr float kSmallestNormal = 1.0F / static_cast<float>(1U << (kBias - 1));
  const auto small = hn::RebindMask(du, hn::Lt(magnitude, hn::Set(F32(), kSmallestNormal)));
  const auto sign = hn::ShiftLeft<7>(hn::ShiftRight<31>(hn::BitCast(du, x)));
  const auto code = hn::Or(hn::IfThenElse(small, units, normal), sign);
  return hn::DemoteTo(Bytes(), hn::BitCast(di, hn::And(code, hn::Set(du, 0xFF))));
}

HWY_INLINE hn::Vec<Bytes> to_byte(DType dtype, Vec x) {
  // Given scales leave numbers beyond the type's limits. i8 has one number more below zero than above.
  const auto top = hn::Set(F32(), largest_of_cache(dtype));
  const auto bottom = hn::Set(F32(), dtype == DType::i8 ? -128.0F : -largest_of_cache(dtype));
  x = hn::Max(hn::Min(x, top), bottom);
  return dtype == DType::i8 ? to_i8(x) : dtype == DType::f8_e4m3 ? to_f8<3, 7>(x) : to_f8<2, 15>(x);
}

// f32 lanes as the nearest of -8..7, ties to even, + 8: the last bits of a sum whose unit in the last place is 1. NaN
// becomes 0, for one byte on every target.
HWY_INLINE hn::Vec<Bytes> to_nibbles(Vec x) {
  const hn::RebindToSigned<F32> di;
  constexpr float kMagic = 0x1p23F + 8.0F;
  const auto number = hn::IfThenZeroElse(hn::IsNaN(x), x);
  const auto clamped = hn::Max(hn::Min(number, hn::Set(F32(), 7.0F)), hn::Set(F32(), -8.0F));
  const auto bits = hn::BitCast(di, hn::Add(clamped, hn::Set(F32(), kMagic)));
  return hn::DemoteTo(Bytes(), hn::And(bits, hn::Set(di, 15)));
}

HWY_INLINE void store_sixteen_nibbles(const float* from, std::byte* to) {
  alignas(kTile) uint8_t nibbles[kTile];
  for (size_t v = 0; v < kVectors; ++v)
    hn::StoreU(to_nibbles(hn::LoadU(F32(), from + v * kLanes)), Bytes(), nibbles + v * kLanes);
  uint64_t halves[2];
  std::memcpy(halves, nibbles, sizeof(halves));
  // No bit leaves its byte: a nibble's byte has four free ones above.
  const uint64_t packed = halves[0] | halves[1] << 4;
  std::memcpy(to, &packed, sizeof(packed));
}

// Sixteen f32 numbers as sixteen of a panel.
HWY_INLINE void store_sixteen(const float* from, DType dtype, std::byte* to) {
  if (!has_token_scales(dtype)) return store_row(from, kTile, dtype, to);
  if (dtype == DType::i4) return store_sixteen_nibbles(from, to);
  for (size_t v = 0; v < kVectors; ++v)
    hn::StoreU(to_byte(dtype, hn::LoadU(F32(), from + v * kLanes)), Bytes(),
               reinterpret_cast<uint8_t*>(to) + v * kLanes);
}

// to[i] = from[i] * factor for i < count, 0 up to the tile's end.
HWY_INLINE void scale_sixteen(const float* from, int64_t count, float factor, float* to) {
  if (count < kTile) {
    std::fill(std::copy_n(from, count, to), to + kTile, 0.0F);
    from = to;
  }
  for (size_t v = 0; v < kVectors; ++v)
    hn::Store(hn::Mul(hn::LoadU(F32(), from + v * kLanes), hn::Set(F32(), factor)), F32(), to + v * kLanes);
}

// A token's scale: stored as the kernels multiply by it. `inverse` brings the token's elements into the type's range.
struct TokenScale {
  float stored = 1.0F;
  float inverse = 1.0F;
};

// The first element of this magnitude, or 0.
HWY_INLINE float first_of_magnitude(float magnitude, const float* row, int64_t width) {
  for (int64_t i = 0; i < width; i += kTile) {
    alignas(64) float numbers[kTile];
    scale_sixteen(row + i, width - i, 1.0F, numbers);
    for (size_t v = 0; v < kVectors; ++v) {
      const auto x = hn::Abs(hn::Load(F32(), numbers + v * kLanes));
      const intptr_t lane = hn::FindFirstTrue(F32(), hn::Eq(x, hn::Set(F32(), magnitude)));
      if (lane >= 0) return numbers[v * kLanes + static_cast<size_t>(lane)];
    }
  }
  return 0.0F;
}

TokenScale scale_of(const float* row, int64_t width, DType dtype) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  auto largest = hn::Zero(F32());
  for (int64_t i = 0; i < width; i += kTile) {
    alignas(64) float numbers[kTile];
    scale_sixteen(row + i, width - i, 1.0F, numbers);
    for (size_t v = 0; v < kVectors; ++v) {
      const auto x = hn::Abs(hn::Load(F32(), numbers + v * kLanes));
      largest = hn::Max(largest, hn::IfThenElse(hn::IsNaN(x), hn::Set(F32(), kInfinity), x));
    }
  }
  const float top = hn::GetLane(hn::MaxOfLanes(F32(), largest));
  // 8 bits or 4 tell neither infinity nor NaN from numbers: the whole token becomes NaN, and whoever sees it.
  if (top == kInfinity) return {.stored = std::numeric_limits<float>::quiet_NaN(), .inverse = 0.0F};
  // The quotient below must not overflow.
  constexpr float kNothing = 1e-30F;
  if (top < kNothing) return {.stored = 0.0F, .inverse = 0.0F};
  const float extreme = dtype == DType::i4 ? first_of_magnitude(top, row, width) : top;
  return {.stored = extreme / extreme_of(dtype) * read_factor(dtype), .inverse = extreme_of(dtype) / extreme};
}

// That of a row whose scales are given: it multiplies by 1, or tells that the row holds a NaN.
TokenScale unit_scale(const float* row, int64_t width, DType dtype) {
  const bool nan = std::any_of(row, row + width, [](float x) { return std::isnan(x); });
  return {.stored = nan ? std::numeric_limits<float>::quiet_NaN() : read_factor(dtype), .inverse = 1.0F};
}

// Scales of rows first..first+count-1 of a tile, written beside the panel; their inverses stay here.
struct TileScales {
  alignas(64) float inverse[kTile];

  TileScales(const TokenRows& rows, int64_t token, const HeadPanel& panel) {
    std::fill_n(inverse, kTile, 1.0F);
    if (!has_token_scales(panel.dtype)) return;
    for (int64_t i = 0; i < rows.count; ++i) {
      const float* row = rows.data + i * rows.stride;
      const TokenScale scale =
          panel.given_scales ? unit_scale(row, rows.width, panel.dtype) : scale_of(row, rows.width, panel.dtype);
      panel.scales[token + i] = scale.stored;
      inverse[i] = scale.inverse;
    }
  }
};

// Columns column..column+15 of sixteen rows, turned: out[16 columns][16 rows].
HWY_INLINE void transpose_sixteen(const TokenRows& rows, int64_t column, float* HWY_RESTRICT out) {
  alignas(64) float padded[kTile][kTile];
  const float* from[kTile];
  for (int64_t row = 0; row < kTile; ++row) {
    from[row] = rows.data + row * rows.stride + column;
    if (column + kTile <= rows.width) continue;
    scale_sixteen(from[row], rows.width - column, 1.0F, padded[row]);
    from[row] = padded[row];
  }
  // Four rows interleave into groups of four, which move as one.
  alignas(64) float fours[4][4 * kTile];
  for (int64_t four = 0; four < 4; ++four)
    for (size_t v = 0; v < kVectors; ++v) {
      const auto load = [&](int64_t i) HWY_ATTR { return hn::LoadU(F32(), from[4 * four + i] + v * kLanes); };
      hn::StoreInterleaved4(load(0), load(1), load(2), load(3), F32(), fours[four] + 4 * v * kLanes);
    }
  for (int64_t i = 0; i < kTile; ++i)
    for (int64_t four = 0; four < 4; ++four)
      std::memcpy(out + i * kTile + 4 * four, fours[four] + 4 * i, 4 * sizeof(float));
}

void store_keys(const TokenRows& rows, int64_t token, const HeadPanel& panel) {
  const TileScales scales(rows, token, panel);
  const int64_t row_bytes = row_bytes_of_cache(panel.dtype);
  std::byte* tile = panel.data + token / kTile * rows.width * row_bytes;
  alignas(64) float turned[kTile * kTile];
  for (int64_t column = 0; column < rows.width; column += kTile) {
    const int64_t count = std::min(kTile, rows.width - column);
    std::byte* out = tile + column * row_bytes;
    if (rows.count == kTile) {
      transpose_sixteen(rows, column, turned);
      for (int64_t i = 0; i < count; ++i) {
        for (size_t v = 0; v < kVectors; ++v) {
          float* at = turned + i * kTile + static_cast<int64_t>(v * kLanes);
          hn::Store(hn::Mul(hn::Load(F32(), at), hn::Load(F32(), scales.inverse + v * kLanes)), F32(), at);
        }
        store_sixteen(turned + i * kTile, panel.dtype, out + i * row_bytes);
      }
      continue;
    }
    for (int64_t i = 0; i < rows.count; ++i) {
      alignas(64) std::byte narrow[kTile * sizeof(float)];
      scale_sixteen(rows.data + i * rows.stride + column, count, scales.inverse[i], turned);
      store_sixteen(turned, panel.dtype, narrow);
      for (int64_t d = 0; d < count; ++d) copy_element(narrow, d, row_bytes, out + d * row_bytes, token % kTile + i);
    }
  }
}

void store_values(const TokenRows& rows, int64_t token, const HeadPanel& panel) {
  const TileScales scales(rows, token, panel);
  const int64_t row_bytes = row_bytes_of_cache(panel.dtype);
  for (int64_t column = 0; column < rows.width; column += kTile)
    for (int64_t i = 0; i < rows.count; ++i) {
      alignas(64) float scaled[kTile];
      scale_sixteen(rows.data + i * rows.stride + column, rows.width - column, scales.inverse[i], scaled);
      store_sixteen(scaled, panel.dtype, panel.data + (column / kTile * panel.page_tokens + token + i) * row_bytes);
    }
}

}  // namespace
}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace regard::kernels {
namespace {
HWY_EXPORT(store_keys);
HWY_EXPORT(store_values);

float number_of(const std::byte* bits, DType dtype) {
  const auto as = [&]<class T>(T) {
    T value;
    std::memcpy(&value, bits, sizeof(T));
    return static_cast<float>(value);
  };
  switch (dtype) {
    case DType::bf16:
      return as(BFloat16());
    case DType::f16:
      return as(Float16());
    case DType::f8_e4m3:
      return as(Float8E4M3());
    case DType::f8_e5m2:
      return as(Float8E5M2());
    case DType::i8:
      return as(int8_t());
    case DType::i4:
      return static_cast<float>(std::to_integer<int>(*bits) - 8);
    default:
      return as(float());
  }
}

void load_token(PanelSide side, const HeadPanel& panel, int64_t token, int64_t width, float* out) {
  const PanelElements elements(side, panel_type_of_cache(panel.dtype), panel.data, panel.page_tokens, width);
  const float scale = has_token_scales(panel.dtype) ? panel.scales[token] / read_factor(panel.dtype) : 1.0F;
  for (int64_t i = 0; i < width; ++i) {
    std::byte bits[sizeof(float)];
    elements.get(token, i, bits);
    out[i] = number_of(bits, panel.dtype) * scale;
  }
}

}  // namespace

PanelType panel_type_of_cache(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return PanelType::bf16;
    case DType::f16:
      return PanelType::f16;
    case DType::f8_e4m3:
      return PanelType::f8_e4m3;
    case DType::f8_e5m2:
      return PanelType::f8_e5m2;
    case DType::i8:
      return PanelType::i8_unscaled;
    case DType::i4:
      return PanelType::i4_unscaled;
    default:
      return PanelType::f32;
  }
}

void store_keys(const TokenRows& rows, int64_t token, const HeadPanel& panel) {
  HWY_DYNAMIC_DISPATCH(store_keys)(rows, token, panel);
}

void store_values(const TokenRows& rows, int64_t token, const HeadPanel& panel) {
  HWY_DYNAMIC_DISPATCH(store_values)(rows, token, panel);
}

void load_key(const HeadPanel& panel, int64_t token, int64_t width, float* out) {
  load_token(PanelSide::keys, panel, token, width, out);
}

void load_value(const HeadPanel& panel, int64_t token, int64_t width, float* out) {
  load_token(PanelSide::values, panel, token, width, out);
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
