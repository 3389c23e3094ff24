// The one microkernel: C[m][0..16) (+)= sum over k of A[m][k] * B[k][0..16), compiled once per target.
// Projections (x * W^T), scores (q * K^T) and weighted values (p * V) are all this product.

#if defined(REGARD_KERNELS_MICROKERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_MICROKERNEL_INL_H_
#undef REGARD_KERNELS_MICROKERNEL_INL_H_
#else
#define REGARD_KERNELS_MICROKERNEL_INL_H_
#endif

#include <algorithm>
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
inline constexpr int kAccumulators = kVectors == 1 ? 24 : 12;
// Floats of the largest kernel's sums. Without vectors one tile of three rows has more of them than registers.
inline constexpr size_t kMostSums = std::max(kVectors * kMaxRows, size_t{kAccumulators}) * kLanes;
constexpr int tiles_for(int rows, bool grouped) {
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

  HWY_INLINE void add(const float* terms, size_t stride) {
    REGARD_UNROLL
    for (int m = 0; m < kRows; ++m) {
      REGARD_UNROLL
      for (size_t v = 0; v < kTiles * kVectors; ++v)
        sums[m][v] = hn::Add(hn::LoadU(F32(), terms + static_cast<size_t>(m) * stride + v * kLanes), sums[m][v]);
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

// The tiles of one product. Those of a matrix lie evenly; those of a cache may lie in two pages, half of what a kernel
// takes at once in each. What lies `ahead` bytes later is fetched meanwhile.
struct TileRun {
  const std::byte* low;   // the first half of the tiles that a kernel takes at once
  const std::byte* high;  // the others
  int64_t ahead_low;
  int64_t ahead_high;
  int64_t tile_bytes;  // from one tile to the next, of a half
  int64_t depth;       // k's
  int64_t group;       // as a panel's
  int64_t chain;       // k's after which the sums start afresh; whole groups
  // [kMostSums], where the chains so far are added up. It belongs to the caller: compilers keep a kernel's own array in
  // registers, and the running sums in memory instead (measured: 4 rows of 4 bits take 1.4 times as long with AVX2).
  float* chain_sums;
};

// Where a kernel is in the tiles that it takes at once, and in what it fetches.
template <class Element, int kTiles>
struct TileCursor {
  static constexpr size_t kLow = kTiles == 1 ? 1 : kTiles / 2;

  const std::byte* low;
  const std::byte* high;
  const std::byte* next_low;
  const std::byte* next_high;
  size_t tile_bytes;

  HWY_INLINE TileCursor(const TileRun& run, int64_t first_tile)
      : low(run.low + first_tile * run.tile_bytes),
        high(run.high + first_tile * run.tile_bytes),
        next_low(low + run.ahead_low),
        next_high(high + run.ahead_high),
        tile_bytes(static_cast<size_t>(run.tile_bytes)) {}

  HWY_INLINE const std::byte* at(size_t tile) const {
    return tile < kLow ? low + tile * tile_bytes : high + (tile - kLow) * tile_bytes;
  }
  // Fetches the cache line `byte` bytes from here of each tile.
  HWY_INLINE void fetch(size_t byte) const {
    REGARD_UNROLL
    for (size_t tile = 0; tile < kTiles; ++tile)
      prefetch((tile < kLow ? next_low + tile * tile_bytes : next_high + (tile - kLow) * tile_bytes) + byte);
  }
  HWY_INLINE void advance(size_t bytes) {
    low += bytes;
    high += bytes;
    next_low += bytes;
    next_high += bytes;
  }
};

// k's that a kernel takes in one turn of its loop. Four cost less to count, and fetch a line once that several rows
// share; but they need registers beside the sums. Under a sanitizer compilers would take a quarter of an hour for them.
constexpr size_t rows_at_once(int accumulators) {
  if (HWY_IS_ASAN || HWY_IS_MSAN || HWY_IS_TSAN) return 1;
  return 3 * accumulators > 2 * kAccumulators ? 2 : 4;
}

// Adds `depth` k's of whole groups.
template <class Element, int kRows, int kTiles>
HWY_INLINE void add_groups(const float* HWY_RESTRICT a, TileCursor<Element, kTiles>& b, size_t depth, size_t group,
                           Accumulators<Element, kRows, kTiles>& accumulators) {
  const size_t group_bytes = Element::kHeaderBytes + group / 2 * Element::kPairBytes;
  for (size_t k = 0; k < depth; k += group, b.advance(group_bytes)) {
    GroupScales scales[kTiles * kVectors];
    REGARD_UNROLL
    for (size_t v = 0; v < kTiles * kVectors; ++v) scales[v] = Element::scales(b.at(v / kVectors), v % kVectors);
    for (size_t byte = 0; byte < group_bytes; byte += 64) b.fetch(byte);
    for (size_t pair = 0; pair < group / 2; ++pair) {
      Vec even[kTiles * kVectors];
      Vec odd[kTiles * kVectors];
      REGARD_UNROLL
      for (size_t v = 0; v < kTiles * kVectors; ++v) {
        const std::byte* integers = b.at(v / kVectors) + Element::kHeaderBytes;
        Element::load(scales[v], integers + pair * Element::kPairBytes, v % kVectors, even[v], odd[v]);
      }
      accumulators.step(a + k + 2 * pair, even);
      accumulators.step(a + k + 2 * pair + 1, odd);
    }
  }
}

template <class Element, int kRows, int kTiles>
HWY_INLINE void add_row(const float* HWY_RESTRICT a, const TileCursor<Element, kTiles>& b, size_t k,
                        Accumulators<Element, kRows, kTiles>& accumulators) {
  Vec row[kTiles * kVectors];
  REGARD_UNROLL
  for (size_t v = 0; v < kTiles * kVectors; ++v)
    row[v] = Element::load(b.at(v / kVectors) + k * Element::kRowBytes, v % kVectors);
  accumulators.step(a + k, row);
}

// Adds `depth` k's of plain numbers.
template <class Element, int kRows, int kTiles>
HWY_INLINE void add_plain(const float* HWY_RESTRICT a, TileCursor<Element, kTiles>& b, size_t depth,
                          Accumulators<Element, kRows, kTiles>& accumulators) {
  constexpr size_t kStep = rows_at_once(kRows * kTiles * static_cast<int>(kVectors));
  size_t k = 0;
  for (; k + kStep <= depth; k += kStep, b.advance(kStep * Element::kRowBytes)) {
    REGARD_UNROLL
    for (size_t i = 0; i < kStep; ++i) {
      if (i * Element::kRowBytes % 64 == 0) b.fetch(i * Element::kRowBytes);
      add_row(a + k, b, i, accumulators);
    }
  }
  if constexpr (kStep > 1) {
    for (; k < depth; ++k, b.advance(Element::kRowBytes)) {
      b.fetch(0);
      add_row(a + k, b, 0, accumulators);
    }
  }
}

// kRows rows of A (kBlock floats apart) times kTiles tiles of B, from `tile` on. C's rows are c_stride floats apart.
template <class Element, int kRows, int kTiles>
HWY_INLINE void multiply_tile(const float* HWY_RESTRICT a, const TileRun& run, int64_t tile, Sum mode,
                              float* HWY_RESTRICT c, size_t c_stride) {
  TileCursor<Element, kTiles> b(run, tile);
  const auto depth = static_cast<size_t>(run.depth);
  const auto chain = static_cast<size_t>(run.chain);
  constexpr size_t kStride = kTiles * kTile;  // of chain_sums
  static_assert(kRows * kStride <= kMostSums);
  Accumulators<Element, kRows, kTiles> accumulators;
  accumulators.begin(mode, c, c_stride);
  for (size_t done = 0;;) {
    const size_t count = std::min(chain, depth - done);
    if constexpr (Element::kGrouped)
      add_groups(a + done, b, count, static_cast<size_t>(run.group), accumulators);
    else
      add_plain(a + done, b, count, accumulators);
    const bool first = done == 0;
    done += count;
    if (done == depth) {
      if (!first) accumulators.add(run.chain_sums, kStride);
      break;
    }
    accumulators.end(first ? Sum::start : Sum::add, run.chain_sums, kStride);
    accumulators.begin(Sum::start, run.chain_sums, kStride);
  }
  accumulators.end(mode, c, c_stride);
}

// The same for tiles first..end-1, kTiles at once. C's tiles are kTile floats apart.
template <class Element, int kRows, int kTiles>
HWY_NOINLINE void multiply_tiles(const float* HWY_RESTRICT a, const TileRun& run, int64_t first, int64_t end, Sum mode,
                                 float* HWY_RESTRICT c, size_t c_stride) {
  for (int64_t tile = first; tile < end; tile += kTiles)
    multiply_tile<Element, kRows, kTiles>(a, run, tile, mode, c + tile * kTile, c_stride);
}

using MultiplyTiles = void (*)(const float*, const TileRun&, int64_t, int64_t, Sum, float*, size_t);

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

inline const RowKernels& kernels_of_floats(PanelType type, int64_t rows) {
  const auto index = static_cast<size_t>(rows - 1);
  if (type == PanelType::f32) return kKernels<PlainF32>[index];
  return type == PanelType::bf16 ? kKernels<PlainBF16>[index] : kKernels<PlainF16>[index];
}

// The kernels of weights and those of caches: a file that multiplies by one kind need not compile the other's.
struct WeightKernels {
  static const RowKernels& of(PanelType type, int64_t rows) {
    const auto index = static_cast<size_t>(rows - 1);
    if (type == PanelType::i8) return kKernels<GroupedI8<PlainF16, false>>[index];
    if (type == PanelType::i8_wide) return kKernels<GroupedI8<PlainF32, true>>[index];
    if (type == PanelType::u4) return kKernels<GroupedU4<PlainF16>>[index];
    if (type == PanelType::u4_wide) return kKernels<GroupedU4<PlainF32>>[index];
    return kernels_of_floats(type, rows);
  }
};
struct CacheKernels {
  static const RowKernels& of(PanelType type, int64_t rows) {
    const auto index = static_cast<size_t>(rows - 1);
    if (type == PanelType::f8_e4m3) return kKernels<PlainE4M3>[index];
    if (type == PanelType::f8_e5m2) return kKernels<PlainE5M2>[index];
    if (type == PanelType::i8_unscaled) return kKernels<PlainI8>[index];
    if (type == PanelType::i4_unscaled) return kKernels<PlainI4>[index];
    return kernels_of_floats(type, rows);
  }
};

// Sums that never start afresh within a block.
inline constexpr int64_t kOneChain = kBlock;

// `rows` rows (at most kMaxRows) times `tile_count` tiles. The chains of sums over k start afresh after `chain` k's.
template <class Kernels>
HWY_INLINE void multiply(const float* a, int64_t rows, const PanelView& panel, int64_t tile_count, int64_t depth,
                         int64_t chain, Sum mode, float* c, size_t c_stride) {
  const RowKernels& kernels = Kernels::of(panel.type, rows);
  alignas(64) float chain_sums[kMostSums];
  const TileRun run{.low = panel.data,
                    .high = panel.data + kernels.tiles / 2 * panel.tile_bytes,
                    .ahead_low = panel.ahead,
                    .ahead_high = panel.ahead,
                    .tile_bytes = panel.tile_bytes,
                    .depth = depth,
                    .group = panel.group,
                    .chain = chain,
                    .chain_sums = chain_sums};
  const int64_t wide = tile_count / kernels.tiles * kernels.tiles;
  if (wide > 0) kernels.wide(a, run, 0, wide, mode, c, c_stride);
  if (wide < tile_count) kernels.narrow(a, run, wide, tile_count, mode, c, c_stride);
}

// The same for four tiles, of which two lie in each of two pages.
HWY_INLINE void multiply_split(const float* a, int64_t rows, const PanelView& low, const PanelView& high, int64_t depth,
                               int64_t chain, Sum mode, float* c, size_t c_stride) {
  const RowKernels& kernels = CacheKernels::of(low.type, rows);
  if (kernels.tiles < 4) {
    multiply<CacheKernels>(a, rows, low, 2, depth, chain, mode, c, c_stride);
    multiply<CacheKernels>(a, rows, high, 2, depth, chain, mode, c + 2 * kTile, c_stride);
    return;
  }
  alignas(64) float chain_sums[kMostSums];
  const TileRun run{.low = low.data,
                    .high = high.data,
                    .ahead_low = low.ahead,
                    .ahead_high = high.ahead,
                    .tile_bytes = low.tile_bytes,
                    .depth = depth,
                    .group = 0,
                    .chain = chain,
                    .chain_sums = chain_sums};
  kernels.wide(a, run, 0, kernels.tiles, mode, c, c_stride);
}

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
