#include "kernels/matmul.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/matmul.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because it is compiled once per target.
#include "kernels/convert-inl.h"
#include "kernels/microkernel-inl.h"

#ifndef REGARD_KERNELS_MATMUL_ONCE_
#define REGARD_KERNELS_MATMUL_ONCE_
namespace regard::kernels {

// Rows that are packed and multiplied together: weights come from memory once for so many rows.
inline constexpr int64_t kRowsAtOnce = 240;

// Weight tiles whose block is decoded together: two tiles of a block are 32 KB of f32.
inline constexpr int64_t kDecodedTiles = 2;

// A run of tiles of one product: what a thread takes at a time.
struct TileRun {
  const Product* product;
  int64_t first;
  int64_t count;
};

}  // namespace regard::kernels
#endif  // once

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace {

void pack_row(const InputRows& input, int64_t row, int64_t rows, int64_t index, float* packed) {
  for (int64_t block = 0; block < blocks(input.depth); ++block) {
    const int64_t depth = std::min(kBlock, input.depth - block * kBlock);
    const std::byte* from =
        input.data + (row * input.stride + block * kBlock) * static_cast<int64_t>(size_of(input.dtype));
    float* to = packed + (block * rows + index) * kBlock;
    load_row(from, input.dtype, depth, to);
  }
}

// Packed rows times `tile_count` tiles from `tile` on, into C.
void multiply_columns(const RowBlocks& packed, int64_t depth, const PanelView& weights, int64_t tile,
                      int64_t tile_count, float* decode_memory, float* c, int64_t c_stride) {
  const bool fused = packed.rows <= kFusedRows || weights.type == PanelType::f32;
  const int64_t step = weights.type != PanelType::f32 && fused ? kFusedRows : kMaxRows;
  for (int64_t block = 0; block < blocks(depth); ++block) {
    const int64_t count = std::min(kBlock, depth - block * kBlock);
    const PanelView stored = weights.from(tile, block * kBlock);
    const PanelView panel = fused ? stored : decoded(stored, tile_count, count, decode_memory);
    for (int64_t row = 0; row < packed.rows; row += step)
      multiply(packed.row(block, row), std::min(step, packed.rows - row), panel, tile_count, count,
               block == 0 ? Sum::start : Sum::add, c + row * c_stride, static_cast<size_t>(c_stride));
  }
}

void add_bias(const float* bias, int64_t rows, int64_t columns, float* out, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) out[row * stride + column] += bias[column];
}

// `packed` are rows first_row.. of the input. The last tile of a matrix may be partly padding, which must not be
// written.
void multiply_run(const RowBlocks& packed, int64_t depth, const TileRun& run, int64_t first_row, float* memory) {
  const Product& product = *run.product;
  float* decode_memory = memory;
  float* padded = memory + kDecodedTiles * kTile * kBlock;
  float* out = product.out + first_row * product.out_stride;
  const int64_t whole_tiles = product.columns / kTile;
  const int64_t group = packed.rows <= kFusedRows ? 4 : kDecodedTiles;
  for (int64_t tile = run.first; tile < run.first + run.count;) {
    const int64_t column = tile * kTile;
    if (tile < whole_tiles) {
      const int64_t count = std::min({group, run.first + run.count - tile, whole_tiles - tile});
      multiply_columns(packed, depth, product.weights, tile, count, decode_memory, out + column, product.out_stride);
      tile += count;
    } else {
      multiply_columns(packed, depth, product.weights, tile, 1, decode_memory, padded, kTile);
      for (int64_t row = 0; row < packed.rows; ++row)
        std::copy_n(padded + row * kTile, product.columns - column, out + row * product.out_stride + column);
      ++tile;
    }
  }
  if (product.bias == nullptr) return;
  const int64_t column = run.first * kTile;
  add_bias(product.bias + column, packed.rows, std::min(run.count * kTile, product.columns - column), out + column,
           product.out_stride);
}

}  // namespace
}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace regard::kernels {
namespace {
HWY_EXPORT(pack_row);
HWY_EXPORT(multiply_run);

// Tiles a thread takes at a time: a multiple of what the kernels take, small enough that the threads end together.
int64_t run_tiles(std::span<const Product> products, const Threads& threads) {
  int64_t total = 0;
  for (const Product& product : products) total += tiles(product.columns);
  constexpr int64_t kSmall = 4;
  constexpr int64_t kLarge = 16;
  return total >= 8 * kLarge * threads.count() ? kLarge : kSmall;
}

// The `index`-th run of all products' tiles.
TileRun find_run(std::span<const Product> products, int64_t size, int64_t index) {
  for (const Product& product : products) {
    const int64_t runs = (tiles(product.columns) + size - 1) / size;
    if (index < runs)
      return {
          .product = &product, .first = index * size, .count = std::min(size, tiles(product.columns) - index * size)};
    index -= runs;
  }
  return {};
}

}  // namespace

float* MatmulScratch::rows(size_t count) {
  if (rows_.size() < count * sizeof(float)) rows_ = Buffer(count * sizeof(float));
  return reinterpret_cast<float*>(rows_.data());
}

void MatmulScratch::reserve(int threads, size_t count_per_thread) {
  if (threads_.size() < static_cast<size_t>(threads)) threads_.resize(static_cast<size_t>(threads));
  for (Buffer& buffer : threads_)
    if (buffer.size() < count_per_thread * sizeof(float)) buffer = Buffer(count_per_thread * sizeof(float));
}

void matmul(const InputRows& input, std::span<const Product> products, MatmulScratch& scratch, const Threads& threads) {
  scratch.reserve(threads.count(), static_cast<size_t>(kDecodedTiles * kTile * kBlock + kRowsAtOnce * kTile));
  const int64_t size = run_tiles(products, threads);
  int64_t runs = 0;
  int64_t columns = 0;
  for (const Product& product : products) {
    runs += (tiles(product.columns) + size - 1) / size;
    columns += product.columns;
  }
  for (int64_t first = 0; first < input.rows; first += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, input.rows - first);
    float* packed = scratch.rows(static_cast<size_t>(rows * blocks(input.depth) * kBlock));
    const auto pack = [&](int64_t row, int) { HWY_DYNAMIC_DISPATCH(pack_row)(input, first + row, rows, row, packed); };
    threads.for_work(rows * input.depth).for_each(rows, pack);
    const RowBlocks blocks{.data = packed, .rows = rows};
    threads.for_work(rows * input.depth * columns).for_each(runs, [&](int64_t index, int thread) {
      HWY_DYNAMIC_DISPATCH(multiply_run)
      (blocks, input.depth, find_run(products, size, index), first, scratch.of_thread(thread));
    });
  }
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
