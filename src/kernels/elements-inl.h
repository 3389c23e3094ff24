// How a panel's elements become f32: a row at a time inside the microkernel, or whole tiles before it.

#if defined(REGARD_KERNELS_ELEMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_ELEMENTS_INL_H_
#undef REGARD_KERNELS_ELEMENTS_INL_H_
#else
#define REGARD_KERNELS_ELEMENTS_INL_H_
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/panel.h"
#include "kernels/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {

struct PlainF32 {
  static constexpr bool kGrouped = false;
  static constexpr size_t kRowBytes = 64;
  static HWY_INLINE Vec load(const std::byte* row, size_t vector) {
    return hn::LoadU(F32(), reinterpret_cast<const float*>(row) + vector * kLanes);
  }
};

struct PlainBF16 {
  static constexpr bool kGrouped = false;
  static constexpr size_t kRowBytes = 32;
  static HWY_INLINE Vec load(const std::byte* row, size_t vector) {
    const hn::Rebind<hwy::bfloat16_t, F32> narrow;
    return hn::PromoteTo(F32(), hn::LoadU(narrow, reinterpret_cast<const hwy::bfloat16_t*>(row) + vector * kLanes));
  }
};

struct PlainF16 {
  static constexpr bool kGrouped = false;
  static constexpr size_t kRowBytes = 32;
  static HWY_INLINE Vec load(const std::byte* row, size_t vector) {
    const hn::Rebind<hwy::float16_t, F32> narrow;
    return hn::PromoteTo(F32(), hn::LoadU(narrow, reinterpret_cast<const hwy::float16_t*>(row) + vector * kLanes));
  }
};

struct PlainI8 {
  static constexpr bool kGrouped = false;
  static constexpr size_t kRowBytes = 16;
  static HWY_INLINE Vec load(const std::byte* row, size_t vector) {
    const hn::Rebind<int8_t, F32> narrow;
    const hn::RebindToSigned<F32> wide;
    return hn::ConvertTo(
        F32(), hn::PromoteTo(wide, hn::LoadU(narrow, reinterpret_cast<const int8_t*>(row) + vector * kLanes)));
  }
};

template <int kFirst, int... kIndex>
constexpr std::array<float, sizeof...(kIndex)> numbers_from(std::integer_sequence<int, kIndex...>) {
  return {static_cast<float>(kFirst + kIndex)...};
}

// The low four bits of each lane as a number, counted from kLowest; the others may be anything where a table of all
// sixteen fits a vector.
template <int kLowest>
HWY_INLINE Vec low_nibble_as_float(hn::Vec<hn::RebindToSigned<F32>> bits) {
#if HWY_TARGET <= HWY_AVX3
  alignas(64) static constexpr auto kNumbers = numbers_from<kLowest>(std::make_integer_sequence<int, kTile>());
  return Vec{_mm512_permutexvar_ps(bits.raw, hn::Load(F32(), kNumbers.data()).raw)};
#else
  const hn::RebindToSigned<F32> wide;
  return hn::ConvertTo(F32(), hn::Add(hn::And(bits, hn::Set(wide, 15)), hn::Set(wide, kLowest)));
#endif
}

// Byte i of a row holds lane i in its low half and lane i + 8 in its high half: a vector takes either all low halves
// of some bytes, or all high ones, or, where it has sixteen lanes, both.
struct PlainI4 {
  static constexpr bool kGrouped = false;
  static constexpr size_t kRowBytes = 8;
  static HWY_INLINE Vec load(const std::byte* row, size_t vector) {
    const hn::Rebind<uint8_t, F32> narrow;
    const hn::RebindToSigned<F32> wide;
#if HWY_TARGET <= HWY_AVX3
    const hn::Repartition<uint64_t, decltype(narrow)> twice;
    uint64_t bytes;
    std::memcpy(&bytes, row, kRowBytes);
    const auto bits = hn::PromoteTo(wide, hn::BitCast(narrow, hn::Set(twice, bytes)));
    alignas(64) static constexpr int32_t kShifts[kTile] = {0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4};
    return low_nibble_as_float<-8>({_mm512_srlv_epi32(bits.raw, hn::Load(wide, kShifts).raw)});
#else
    const size_t lane = vector * kLanes;
    const auto bits = hn::PromoteTo(wide, hn::LoadU(narrow, reinterpret_cast<const uint8_t*>(row) + lane % kRowBytes));
    return low_nibble_as_float<-8>(lane < kRowBytes ? bits : hn::ShiftRight<4>(bits));
#endif
  }
};

// Both kinds of fp8 go through f16. e5m2 is the upper half of one. The exponent of e4m3 has another bias: moved into
// place its bits mean 2^-8 of the number (and NaN, which only the scale beside it can tell, means 1.875).
struct PlainE5M2 {
  static constexpr bool kGrouped = false;
  static constexpr size_t kRowBytes = 16;
  static HWY_INLINE Vec load(const std::byte* row, size_t vector) {
    const hn::Rebind<uint8_t, F32> narrow;
    const hn::Rebind<uint16_t, F32> bits;
    const hn::Rebind<hwy::float16_t, F32> half;
    const auto bytes = hn::PromoteTo(bits, hn::LoadU(narrow, reinterpret_cast<const uint8_t*>(row) + vector * kLanes));
    return hn::PromoteTo(F32(), hn::BitCast(half, hn::ShiftLeft<8>(bytes)));
  }
};

struct PlainE4M3 {
  static constexpr bool kGrouped = false;
  static constexpr size_t kRowBytes = 16;
  static HWY_INLINE Vec load(const std::byte* row, size_t vector) {
    const hn::Rebind<int8_t, F32> narrow;
    const hn::Rebind<int16_t, F32> bits;
    const hn::Rebind<hwy::float16_t, F32> half;
    // The sign is extended to the top bit and the one below it, which the mask clears.
    const auto bytes = hn::PromoteTo(bits, hn::LoadU(narrow, reinterpret_cast<const int8_t*>(row) + vector * kLanes));
    const auto placed = hn::And(hn::ShiftLeft<7>(bytes), hn::Set(bits, static_cast<int16_t>(0xBFFF)));
    return hn::PromoteTo(F32(), hn::BitCast(half, placed));
  }
};

// The scales and minimums of a group stay in registers (or next to them) while its integers stream by.
struct GroupScales {
  Vec scale;
  Vec minimum;
};

template <class Scale, bool kMinimum>
struct GroupedI8 {
  static constexpr bool kGrouped = true;
  static constexpr size_t kHeaderBytes = Scale::kRowBytes * (kMinimum ? 2 : 1);
  static constexpr size_t kPairBytes = 32;

  static HWY_INLINE GroupScales scales(const std::byte* header, size_t vector) {
    return {Scale::load(header, vector), kMinimum ? Scale::load(header + Scale::kRowBytes, vector) : hn::Zero(F32())};
  }
  // Rows k and k + 1 of a group, as f32 lanes.
  static HWY_INLINE void load(const GroupScales& group, const std::byte* pair, size_t vector, Vec& even, Vec& odd) {
    const hn::Rebind<int8_t, F32> narrow;
    const hn::RebindToSigned<F32> wide;
    const auto* integers = reinterpret_cast<const int8_t*>(pair) + vector * kLanes;
    const auto first = hn::ConvertTo(F32(), hn::PromoteTo(wide, hn::LoadU(narrow, integers)));
    const auto second = hn::ConvertTo(F32(), hn::PromoteTo(wide, hn::LoadU(narrow, integers + kTile)));
    if constexpr (kMinimum) {
      even = hn::MulAdd(first, group.scale, group.minimum);
      odd = hn::MulAdd(second, group.scale, group.minimum);
    } else {
      even = hn::Mul(first, group.scale);
      odd = hn::Mul(second, group.scale);
    }
  }
};

template <class Scale>
struct GroupedU4 {
  static constexpr bool kGrouped = true;
  static constexpr size_t kHeaderBytes = Scale::kRowBytes * 2;
  static constexpr size_t kPairBytes = 16;

  static HWY_INLINE GroupScales scales(const std::byte* header, size_t vector) {
    return {Scale::load(header, vector), Scale::load(header + Scale::kRowBytes, vector)};
  }
  static HWY_INLINE void load(const GroupScales& group, const std::byte* pair, size_t vector, Vec& even, Vec& odd) {
    const hn::Rebind<uint8_t, F32> narrow;
    const hn::RebindToSigned<F32> wide;
    const auto bytes = hn::PromoteTo(wide, hn::LoadU(narrow, reinterpret_cast<const uint8_t*>(pair) + vector * kLanes));
    even = hn::MulAdd(low_nibble_as_float<0>(bytes), group.scale, group.minimum);
    odd = hn::MulAdd(low_nibble_as_float<0>(hn::ShiftRight<4>(bytes)), group.scale, group.minimum);
  }
};

// ---- Whole tiles ----

// Decodes `depth` k's of `tile_count` tiles to f32 tiles [depth][16] at out, tile_floats apart.
template <class Element>
void decode_tiles_of(const PanelView& panel, int64_t tile_count, int64_t depth, float* HWY_RESTRICT all,
                     int64_t tile_floats) {
  for (int64_t tile = 0; tile < tile_count; ++tile) {
    const std::byte* HWY_RESTRICT b = panel.data + tile * panel.tile_bytes;
    float* HWY_RESTRICT out = all + tile * tile_floats;
    if constexpr (Element::kGrouped) {
      for (int64_t k = 0; k < depth; k += panel.group) {
        GroupScales scales[kVectors];
        for (size_t v = 0; v < kVectors; ++v) scales[v] = Element::scales(b, v);
        b += Element::kHeaderBytes;
        for (int32_t pair = 0; pair < panel.group / 2; ++pair, b += Element::kPairBytes, out += 2 * kTile) {
          prefetch(b + panel.ahead);
          for (size_t v = 0; v < kVectors; ++v) {
            Vec even;
            Vec odd;
            Element::load(scales[v], b, v, even, odd);
            hn::StoreU(even, F32(), out + v * kLanes);
            hn::StoreU(odd, F32(), out + kTile + v * kLanes);
          }
        }
      }
    } else {
      for (int64_t k = 0; k < depth; ++k, b += Element::kRowBytes, out += kTile) {
        prefetch(b + panel.ahead);
        for (size_t v = 0; v < kVectors; ++v) hn::StoreU(Element::load(b, v), F32(), out + v * kLanes);
      }
    }
  }
}

inline void decode_tiles(const PanelView& panel, int64_t tile_count, int64_t depth, float* out, int64_t tile_floats) {
  switch (panel.type) {
    case PanelType::f32:
      return decode_tiles_of<PlainF32>(panel, tile_count, depth, out, tile_floats);
    case PanelType::bf16:
      return decode_tiles_of<PlainBF16>(panel, tile_count, depth, out, tile_floats);
    case PanelType::f16:
      return decode_tiles_of<PlainF16>(panel, tile_count, depth, out, tile_floats);
    case PanelType::f8_e4m3:
      return decode_tiles_of<PlainE4M3>(panel, tile_count, depth, out, tile_floats);
    case PanelType::f8_e5m2:
      return decode_tiles_of<PlainE5M2>(panel, tile_count, depth, out, tile_floats);
    case PanelType::i8_unscaled:
      return decode_tiles_of<PlainI8>(panel, tile_count, depth, out, tile_floats);
    case PanelType::i4_unscaled:
      return decode_tiles_of<PlainI4>(panel, tile_count, depth, out, tile_floats);
    case PanelType::i8:
      return decode_tiles_of<GroupedI8<PlainF16, false>>(panel, tile_count, depth, out, tile_floats);
    case PanelType::i8_wide:
      return decode_tiles_of<GroupedI8<PlainF32, true>>(panel, tile_count, depth, out, tile_floats);
    case PanelType::u4:
      return decode_tiles_of<GroupedU4<PlainF16>>(panel, tile_count, depth, out, tile_floats);
    case PanelType::u4_wide:
      return decode_tiles_of<GroupedU4<PlainF32>>(panel, tile_count, depth, out, tile_floats);
  }
}

// f32 tiles side by side, `depth` k's each.
inline PanelView f32_panel(const float* tiles, int64_t depth) {
  return {.type = PanelType::f32,
          .data = reinterpret_cast<const std::byte*>(tiles),
          .tile_bytes = depth * kTile * static_cast<int64_t>(sizeof(float))};
}

// The same tiles as f32: the panel itself where it is f32 already, else decoded into `scratch`.
inline PanelView decoded(const PanelView& panel, int64_t tile_count, int64_t depth, float* scratch) {
  if (panel.type == PanelType::f32) return panel;
  decode_tiles(panel, tile_count, depth, scratch, depth * kTile);
  return f32_panel(scratch, depth);
}

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
