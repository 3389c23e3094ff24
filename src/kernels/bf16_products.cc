#include "kernels/bf16_products.h"

#include "kernels/targets.h"
#include "tensor/fail.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <utility>

// Highway (1.0) has no target with these instructions, so they are used directly.
#define REGARD_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace regard::kernels {
namespace {

// Accumulators and operands fit the 32 registers.
constexpr int kMostRows = 12;
constexpr int tiles_of(int rows) { return rows <= 6 ? 4 : 2; }

// Rows k and k + 1 of a tile, side by side in memory, as sixteen pairs.
REGARD_BF16 inline __m512i load_pairs(const std::byte* rows) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, _mm512_loadu_si512(rows));
}

template <int kRows, int kTiles>
REGARD_BF16 inline void step(__m512 (&sums)[kRows][kTiles], const uint16_t* a, const std::byte* b, int64_t tile_bytes,
                             uint32_t mask) {
  __m512bh pairs[kTiles];
  for (int t = 0; t < kTiles; ++t)
    pairs[t] = (__m512bh)_mm512_and_si512(load_pairs(b + t * tile_bytes), _mm512_set1_epi32(static_cast<int>(mask)));
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    const auto both = (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int*>(a + m * kBlock));
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t) sums[m][t] = _mm512_dpbf16_ps(sums[m][t], both, pairs[t]);
  }
}

template <int kRows, int kTiles>
REGARD_BF16 __attribute__((noinline)) void multiply_pairs(const uint16_t* a, const PanelView& panel, int64_t first,
                                                          int64_t last, Sum mode, float* c, int64_t c_stride) {
  constexpr int64_t kPairBytes = 2 * kTile * 2;
  constexpr uint32_t kBoth = 0xFFFFFFFF;
  constexpr uint32_t kOdd = 0xFFFF0000;
  constexpr uint32_t kEven = 0x0000FFFF;
  __m512 sums[kRows][kTiles];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t)
      sums[m][t] = mode == Sum::resume ? _mm512_loadu_ps(c + m * c_stride + t * kTile) : _mm512_setzero_ps();
  const int64_t begin = first / 2;
  const int64_t end = last / 2;
  const int64_t tile_bytes = panel.tile_bytes;
  const uint32_t first_mask = first % 2 == 0 ? kBoth : kOdd;
  const uint32_t last_mask = last % 2 == 0 ? kEven : kBoth;
  if (begin == end) {
    step<kRows, kTiles>(sums, a + 2 * begin, panel.data + begin * kPairBytes, tile_bytes, first_mask & last_mask);
  } else {
    step<kRows, kTiles>(sums, a + 2 * begin, panel.data + begin * kPairBytes, tile_bytes, first_mask);
    for (int64_t pair = begin + 1; pair < end; ++pair) {
      const std::byte* b = panel.data + pair * kPairBytes;
      for (int t = 0; t < kTiles; ++t) __builtin_prefetch(b + t * tile_bytes + panel.ahead, 0, 2);
      step<kRows, kTiles>(sums, a + 2 * pair, b, tile_bytes, kBoth);
    }
    step<kRows, kTiles>(sums, a + 2 * end, panel.data + end * kPairBytes, tile_bytes, last_mask);
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t) {
      float* out = c + m * c_stride + t * kTile;
      _mm512_storeu_ps(out, mode == Sum::add ? _mm512_add_ps(_mm512_loadu_ps(out), sums[m][t]) : sums[m][t]);
    }
}

using MultiplyPairs = void (*)(const uint16_t*, const PanelView&, int64_t, int64_t, Sum, float*, int64_t);
struct PairKernels {
  MultiplyPairs wide;  // takes `tiles` tiles
  MultiplyPairs narrow;
  int64_t tiles;
};

template <int... kIndex>
constexpr auto pair_kernels(std::integer_sequence<int, kIndex...>) {
  return std::array<PairKernels, sizeof...(kIndex)>{PairKernels{
      &multiply_pairs<kIndex + 1, tiles_of(kIndex + 1)>, &multiply_pairs<kIndex + 1, 1>, tiles_of(kIndex + 1)}...};
}
constexpr auto kPairKernels = pair_kernels(std::make_integer_sequence<int, kMostRows>());

}  // namespace

bool has_bf16_products() {
  static const bool supported = __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512bw") != 0;
  return supported && target_name() == "AVX-512";
}

void multiply_bf16(const Bf16Rows& a, const PanelView& panel, int64_t tile_count, int64_t first, int64_t last, Sum mode,
                   float* c, int64_t c_stride) {
  for (int64_t row = 0; row < a.rows; row += kMostRows) {
    const int64_t rows = std::min<int64_t>(kMostRows, a.rows - row);
    const PairKernels& kernels = kPairKernels[static_cast<size_t>(rows - 1)];
    const uint16_t* from = a.data + row * kBlock;
    float* to = c + row * c_stride;
    int64_t tile = 0;
    for (; tile + kernels.tiles <= tile_count; tile += kernels.tiles)
      kernels.wide(from, panel.from(tile, 0), first, last, mode, to + tile * kTile, c_stride);
    for (; tile < tile_count; ++tile)
      kernels.narrow(from, panel.from(tile, 0), first, last, mode, to + tile * kTile, c_stride);
  }
}

}  // namespace regard::kernels
#else
namespace regard::kernels {

bool has_bf16_products() { return false; }

void multiply_bf16(const Bf16Rows&, const PanelView&, int64_t, int64_t, int64_t, Sum, float*, int64_t) {
  fail("kernels: bf16 products are asked for on a machine that has none");
}

}  // namespace regard::kernels
#endif
