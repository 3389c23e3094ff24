// The one microkernel: C[m][0..16) (+)= sum over k of A[m][k] * B[k][0..16), compiled once per target.
// Projections (x * W^T), scores (q * K^T) and weighted values (p * V) are all this product.

#if defined(REGARD_KERNELS_MICROKERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_MICROKERNEL_INL_H_
#undef REGARD_KERNELS_MICROKERNEL_INL_H_
#else
#define REGARD_KERNELS_MICROKERNEL_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

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

// Rows and tiles whose accumulators fill the register file without spilling: 24 of 32 registers, or 12 of 16.
inline constexpr int kMaxRows = kVectors == 1 ? 12 : kVectors == 2 ? 6 : 3;
constexpr int tiles_for(int rows, bool grouped) {
  constexpr int kAccumulators = kVectors == 1 ? 24 : 12;
  // A grouped element needs two more registers a vector for its scales.
  constexpr int kMostGrouped = kVectors == 1 ? 4 : 2;
  const int fit = kAccumulators / (rows * static_cast<int>(kVectors));
  const int most = grouped ? kMostGrouped : 4;
  // A divisor of the four tiles that callers come with: three would leave a narrow one behind.
  const int tiles = fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
  return tiles > most ? most : tiles;
}

// ---- Elements: how a panel row becomes f32 lanes ----

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

// ---- The product ----

template <class Element, int kRows, int kTiles>
struct Accumulators {
  Vec sums[kRows][kTiles * kVectors];

  HWY_INLINE void begin(Sum mode, const float* c, size_t c_stride) {
    REGARD_UNROLL
    for (int m = 0; m < kRows; ++m) {
      REGARD_UNROLL
      for (size_t v = 0; v < kTiles * kVectors; ++v)
        sums[m][v] = mode == Sum::resume ? hn::LoadU(F32(), c + static_cast<size_t>(m) * c_stride + v * kLanes)
                                         : hn::Zero(F32());
    }
  }

  HWY_INLINE void step(const float* a, const Vec (&b)[kTiles * kVectors]) {
    REGARD_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const Vec broadcast = hn::Set(F32(), a[m * kBlock]);
      REGARD_UNROLL
      for (size_t v = 0; v < kTiles * kVectors; ++v) sums[m][v] = hn::MulAdd(broadcast, b[v], sums[m][v]);
    }
  }

  HWY_INLINE void end(Sum mode, float* c, size_t c_stride) const {
    REGARD_UNROLL
    for (int m = 0; m < kRows; ++m) {
      REGARD_UNROLL
      for (size_t v = 0; v < kTiles * kVectors; ++v) {
        float* out = c + static_cast<size_t>(m) * c_stride + v * kLanes;
        hn::StoreU(mode == Sum::add ? hn::Add(hn::LoadU(F32(), out), sums[m][v]) : sums[m][v], F32(), out);
      }
    }
  }
};

// Into the L2 cache: what comes next is larger than L1, and would push out what is in use (measured: a third slower).
HWY_INLINE void prefetch(const std::byte* data) { __builtin_prefetch(data, 0, 2); }

// Some k's of the tiles that a kernel takes at once. Tiles of a matrix lie evenly; those of a cache may lie in two
// pages, half in each. What lies ahead_low and ahead_high bytes later is fetched meanwhile.
struct TileRun {
  const std::byte* low;   // the first half of the tiles
  const std::byte* high;  // the others
  int64_t ahead_low;
  int64_t ahead_high;
  int64_t tile_bytes;  // from one tile of a half to the next
  int64_t depth;
};

// The runs of one product, whose k's follow each other: more than one where values lie in several pages.
struct TileRuns {
  const TileRun* runs;
  int64_t count;
  int64_t group;  // as a panel's
};

// kRows rows of A (kBlock floats apart) times kTiles tiles of B. C's rows are c_stride floats apart, its tiles 16.
template <class Element, int kRows, int kTiles>
HWY_NOINLINE void multiply_tiles(const float* HWY_RESTRICT a, const TileRuns& all, Sum mode, float* HWY_RESTRICT c,
                                 size_t c_stride) {
  Accumulators<Element, kRows, kTiles> accumulators;
  accumulators.begin(mode, c, c_stride);
  constexpr size_t kLow = kTiles == 1 ? 1 : kTiles / 2;
  for (const TileRun* run = all.runs; run < all.runs + all.count; ++run) {
    const auto tile_bytes = static_cast<size_t>(run->tile_bytes);
    const std::byte* HWY_RESTRICT low = run->low;
    const std::byte* HWY_RESTRICT high = run->high;
    const std::byte* next_low = low + run->ahead_low;
    const std::byte* next_high = high + run->ahead_high;
    const auto at = [&](size_t tile)
                        HWY_ATTR { return tile < kLow ? low + tile * tile_bytes : high + (tile - kLow) * tile_bytes; };
    const auto later = [&](size_t tile) HWY_ATTR {
      return tile < kLow ? next_low + tile * tile_bytes : next_high + (tile - kLow) * tile_bytes;
    };
    const auto advance = [&](size_t bytes) HWY_ATTR {
      low += bytes;
      high += bytes;
      next_low += bytes;
      next_high += bytes;
    };
    const auto depth = static_cast<size_t>(run->depth);
    if constexpr (Element::kGrouped) {
      const auto group = static_cast<size_t>(all.group);
      const size_t group_bytes = Element::kHeaderBytes + group / 2 * Element::kPairBytes;
      for (size_t k = 0; k < depth; k += group, advance(group_bytes)) {
        GroupScales scales[kTiles * kVectors];
        REGARD_UNROLL
        for (size_t v = 0; v < kTiles * kVectors; ++v) scales[v] = Element::scales(at(v / kVectors), v % kVectors);
        for (size_t byte = 0; byte < group_bytes; byte += 64) {
          REGARD_UNROLL
          for (size_t tile = 0; tile < kTiles; ++tile) prefetch(later(tile) + byte);
        }
        for (size_t pair = 0; pair < group / 2; ++pair) {
          Vec even[kTiles * kVectors];
          Vec odd[kTiles * kVectors];
          REGARD_UNROLL
          for (size_t v = 0; v < kTiles * kVectors; ++v) {
            const std::byte* integers = at(v / kVectors) + Element::kHeaderBytes;
            Element::load(scales[v], integers + pair * Element::kPairBytes, v % kVectors, even[v], odd[v]);
          }
          accumulators.step(a + k + 2 * pair, even);
          accumulators.step(a + k + 2 * pair + 1, odd);
        }
      }
    } else {
      for (size_t k = 0; k < depth; ++k, advance(Element::kRowBytes)) {
        Vec row[kTiles * kVectors];
        REGARD_UNROLL
        for (size_t tile = 0; tile < kTiles; ++tile) prefetch(later(tile));
        REGARD_UNROLL
        for (size_t v = 0; v < kTiles * kVectors; ++v) row[v] = Element::load(at(v / kVectors), v % kVectors);
        accumulators.step(a + k, row);
      }
    }
    a += depth;
  }
  accumulators.end(mode, c, c_stride);
}

using MultiplyTiles = void (*)(const float*, const TileRuns&, Sum, float*, size_t);

// The kernels for a number of rows: `wide` takes tiles_for(rows) tiles at once, `narrow` one.
struct RowKernels {
  MultiplyTiles wide;
  MultiplyTiles narrow;
  int64_t tiles;
};

template <class Element, int kRows>
constexpr RowKernels row_kernels() {
  constexpr int kTiles = tiles_for(kRows, Element::kGrouped);
  return {&multiply_tiles<Element, kRows, kTiles>, &multiply_tiles<Element, kRows, 1>, kTiles};
}

template <class Element, int... kIndex>
constexpr auto kernel_table(std::integer_sequence<int, kIndex...>) {
  return std::array<RowKernels, sizeof...(kIndex)>{row_kernels<Element, kIndex + 1>()...};
}

// Above this many rows a panel that is not f32 is decoded once into scratch memory, instead of once per row tile. What
// takes more operations to decode is worth it earlier (measured: 32 rows gain 4 % or lose 7 %).
inline constexpr int64_t kMostFused = 32;
inline constexpr int64_t kMostFusedGrouped = 24;

// Rows of each row tile, when `rows` are cut into as few and as equal ones as possible.
constexpr int64_t even_step(int64_t rows, int64_t most) {
  const int64_t parts = (rows + most - 1) / most;
  return (rows + parts - 1) / parts;
}

template <class Element>
inline constexpr auto kKernels = kernel_table<Element>(std::make_integer_sequence<int, kMaxRows>());

inline const RowKernels& kernels_for(PanelType type, int64_t rows) {
  const auto index = static_cast<size_t>(rows - 1);
  switch (type) {
    case PanelType::f32:
      return kKernels<PlainF32>[index];
    case PanelType::bf16:
      return kKernels<PlainBF16>[index];
    case PanelType::f16:
      return kKernels<PlainF16>[index];
    case PanelType::f8_e4m3:
      return kKernels<PlainE4M3>[index];
    case PanelType::f8_e5m2:
      return kKernels<PlainE5M2>[index];
    case PanelType::i8_unscaled:
      return kKernels<PlainI8>[index];
    case PanelType::i4_unscaled:
      return kKernels<PlainI4>[index];
    case PanelType::i8:
      return kKernels<GroupedI8<PlainF16, false>>[index];
    case PanelType::i8_wide:
      return kKernels<GroupedI8<PlainF32, true>>[index];
    case PanelType::u4:
      return kKernels<GroupedU4<PlainF16>>[index];
    case PanelType::u4_wide:
      return kKernels<GroupedU4<PlainF32>>[index];
  }
  __builtin_unreachable();
}

// Panels that follow each other along k.
struct PanelPart {
  PanelView panel;
  int64_t depth = 0;
};
inline constexpr int64_t kMostParts = kBlock / kTile;

// `rows` rows (at most kMaxRows) times `tile_count` tiles of at most kMostParts
// parts.
HWY_INLINE void multiply(const float* a, int64_t rows, const PanelPart* parts, int64_t part_count, int64_t tile_count,
                         Sum mode, float* c, size_t c_stride) {
  const PanelView& first = parts[0].panel;
  const RowKernels& kernels = kernels_for(first.type, rows);
  TileRun runs[kMostParts];
  const TileRuns all{.runs = runs, .count = part_count, .group = first.group};
  const auto run_kernel = [&](MultiplyTiles kernel, int64_t tile, int64_t count) HWY_ATTR {
    for (int64_t i = 0; i < part_count; ++i) {
      const PanelView& panel = parts[i].panel;
      const std::byte* low = panel.data + tile * panel.tile_bytes;
      runs[i] = {low, low + count / 2 * panel.tile_bytes, panel.ahead, panel.ahead, panel.tile_bytes, parts[i].depth};
    }
    kernel(a, all, mode, c + tile * kTile, c_stride);
  };
  int64_t tile = 0;
  for (; tile + kernels.tiles <= tile_count; tile += kernels.tiles) run_kernel(kernels.wide, tile, kernels.tiles);
  for (; tile < tile_count; ++tile) run_kernel(kernels.narrow, tile, 1);
}

HWY_INLINE void multiply(const float* a, int64_t rows, const PanelView& panel, int64_t tile_count, int64_t depth,
                         Sum mode, float* c, size_t c_stride) {
  const PanelPart part{panel, depth};
  multiply(a, rows, &part, 1, tile_count, mode, c, c_stride);
}

// The same for four tiles, of which two lie in each of two pages.
HWY_INLINE void multiply_split(const float* a, int64_t rows, const PanelView& low, const PanelView& high, int64_t depth,
                               Sum mode, float* c, size_t c_stride) {
  const RowKernels& kernels = kernels_for(low.type, rows);
  if (kernels.tiles < 4) {
    multiply(a, rows, low, 2, depth, mode, c, c_stride);
    multiply(a, rows, high, 2, depth, mode, c + 2 * kTile, c_stride);
    return;
  }
  const TileRun run{low.data, high.data, low.ahead, high.ahead, low.tile_bytes, depth};
  kernels.wide(a, {.runs = &run, .count = 1, .group = 0}, mode, c, c_stride);
}

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
