// The one microkernel: C[m][0..16) (+)= sum over k of A[m][k] * B[k][0..16), compiled once per target.
// Projections (x * W^T), scores (q * K^T) and weighted values (p * V) are all this product.

#if defined(REGARD_KERNELS_MICROKERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_MICROKERNEL_INL_H_
#undef REGARD_KERNELS_MICROKERNEL_INL_H_
#else
#define REGARD_KERNELS_MICROKERNEL_INL_H_
#endif

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/elements-inl.h"
#include "kernels/panel.h"
#include "kernels/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {

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

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
