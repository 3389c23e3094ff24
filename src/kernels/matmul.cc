#include "kernels/matmul.h"

#include <algorithm>
#include <array>

#include "kernels/bf16_products.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/matmul.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because it is compiled once per target.
#include "kernels/convert-inl.h"
#include "kernels/microkernel-inl.h"

#ifndef REGARD_KERNELS_MATMUL_ONCE_
#define REGARD_KERNELS_MATMUL_ONCE_
namespace regard::kernels {

// Rows that are packed and multiplied together: weights come from memory once for so many rows, and one block of them
// fills half of the L2 cache at most. A multiple of all row tiles.
inline int64_t rows_at_once(const CacheSizes& caches) {
  constexpr int64_t kStep = 48;
  constexpr int64_t kMost = 5 * kStep;
  const int64_t rows = caches.l2 / 2 / (kBlock * static_cast<int64_t>(sizeof(float)));
  return std::clamp(rows / kStep * kStep, kStep, kMost);
}

// The left operand: rows of f32, or of bf16 where products are of bf16 pairs, cut along k: [blocks][rows][kBlock].
struct PackedRows {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t depth = 0;
  bool pairs = false;

  [[nodiscard]] float* row(int64_t block, int64_t index) const { return data + (block * rows + index) * kBlock; }
  [[nodiscard]] uint16_t* bf16_row(int64_t block, int64_t index) const {
    return reinterpret_cast<uint16_t*>(data) + (block * rows + index) * kBlock;
  }
};

// Inside a block, sums start afresh at multiples of this many k's, which depends on the weights alone. PyTorch
// multiplies few rows with short sums. A product of few columns has to do the same to be as exact; one of many is so
// with longer chains, because its error comes from the many block sums that follow, and every chain costs time
// (docs/numerics.md). Groups that share a scale, of a power of two up to kBlock, are not cut.
inline int64_t chain_of(int64_t depth, int64_t group) {
  constexpr int64_t kShortChain = 32;
  constexpr int64_t kLongChain = 128;
  constexpr int64_t kMostShort = 512;
  static_assert(kBlock % kLongChain == 0 && kLongChain % kShortChain == 0);
  return std::max(depth <= kMostShort ? kShortChain : kLongChain, group);
}

// Weight tiles whose block is decoded together: two tiles of a block are 32 KB of f32.
inline constexpr int64_t kDecodedTiles = 2;

// A run of tiles of one product: what a thread takes at a time.
struct ColumnRun {
  const Product* product;
  int64_t first;
  int64_t count;
};

}  // namespace regard::kernels
#endif  // once

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace {

void pack_row(const InputRows& input, int64_t row, int64_t index, const PackedRows& packed) {
  const int64_t source = input.index == nullptr ? row : input.index[row];
  for (int64_t block = 0; block < blocks(input.depth); ++block) {
    const int64_t depth = std::min(kBlock, input.depth - block * kBlock);
    const std::byte* from =
        input.data + (source * input.stride + block * kBlock) * static_cast<int64_t>(size_of(input.dtype));
    if (packed.pairs) {
      alignas(64) float wide[kBlock];
      load_row(from, input.dtype, depth, wide);
      store_row(wide, depth, DType::bf16, reinterpret_cast<std::byte*>(packed.bf16_row(block, index)));
    } else {
      load_row(from, input.dtype, depth, packed.row(block, index));
    }
  }
}

// One block of packed rows times `tile_count` tiles from `tile` on, added to C from the second block on. The weights
// that come `ahead` bytes later are fetched meanwhile.
void multiply_block(const PackedRows& packed, int64_t block, int64_t count, PanelView panel, int64_t tile_count,
                    float* decode_memory, float* c, int64_t c_stride) {
  const Sum mode = block == 0 ? Sum::start : Sum::add;
  const int64_t chain = chain_of(packed.depth, panel.group);
  if (packed.pairs)
    return multiply_bf16({packed.bf16_row(block, 0), packed.rows}, panel, tile_count, 0, count - 1, mode, c, c_stride);
  if (packed.rows > (panel.is_grouped() ? kMostFusedGrouped : kMostFused))
    panel = decoded(panel, tile_count, count, decode_memory);
  const int64_t step = even_step(packed.rows, kMaxRows);
  for (int64_t row = 0; row < packed.rows; row += step) {
    multiply<WeightKernels>(packed.row(block, row), std::min(step, packed.rows - row), panel, tile_count, count, chain,
                            mode, c + row * c_stride, static_cast<size_t>(c_stride));
    panel.ahead = 0;
  }
}

void add_bias(const float* bias, int64_t rows, int64_t columns, float* out, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) out[row * stride + column] += bias[column];
}

// `packed` are rows first_row.. of the input. The last tile of a matrix may be partly padding, which must not be
// written.
void multiply_run(const PackedRows& packed, const ColumnRun& run, int64_t first_row, float* memory) {
  const Product& product = *run.product;
  float* decode_memory = memory;
  float* padded = memory + kDecodedTiles * kTile * kBlock;
  float* out = product.out + first_row * product.out_stride;
  const int64_t end = run.first + run.count;
  const int64_t whole_end = std::min(end, product.columns / kTile);
  const bool few = packed.rows <= kMaxRows;
  const int64_t group = few ? 4 : kDecodedTiles;
  const auto multiply_part = [&](int64_t block, int64_t tile) {
    const int64_t count = std::min(kBlock, packed.depth - block * kBlock);
    PanelView panel = product.weights.from(tile, block * kBlock);
    // What comes next: for a few rows the next block, for many the next tiles.
    if (few && block + 1 < blocks(packed.depth)) panel.ahead = panel.bytes_of(count);
    if (!few && tile + group < whole_end) panel.ahead = group * panel.tile_bytes;
    if (tile < whole_end)
      multiply_block(packed, block, count, panel, std::min(group, whole_end - tile), decode_memory, out + tile * kTile,
                     product.out_stride);
    else
      multiply_block(packed, block, count, panel, 1, decode_memory, padded, kTile);
  };
  // A few rows read the weights in the order of memory. Many rows stay with one block of themselves, which fits the L2
  // cache, for all tiles.
  const auto next_tile = [&](int64_t tile) { return tile < whole_end ? std::min(tile + group, whole_end) : tile + 1; };
  if (few) {
    for (int64_t tile = run.first; tile < end; tile = next_tile(tile))
      for (int64_t block = 0; block < blocks(packed.depth); ++block) multiply_part(block, tile);
  } else {
    for (int64_t block = 0; block < blocks(packed.depth); ++block)
      for (int64_t tile = run.first; tile < end; tile = next_tile(tile)) multiply_part(block, tile);
  }
  if (whole_end < end)
    for (int64_t row = 0; row < packed.rows; ++row)
      std::copy_n(padded + row * kTile, product.columns - whole_end * kTile,
                  out + row * product.out_stride + whole_end * kTile);
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

// Rows of one group, which are packed and multiplied together.
struct Piece {
  const ProductGroup* group;
  PackedRows packed;
  int64_t first;        // of the input
  int64_t first_index;  // among the rows of all pieces of the batch
  int64_t first_run;    // among the runs of columns of all pieces of the batch
};

// The pieces that are worked on at once. They have rows_at_once rows at most, and one at least each.
struct Batch {
  static constexpr int64_t kMostPieces = 5 * 48;
  std::array<Piece, kMostPieces> pieces;
  int64_t count = 0;
  int64_t rows = 0;
  int64_t runs = 0;
  int64_t operations = 0;

  // The piece of a row or a run, by where each piece's first one is.
  [[nodiscard]] const Piece& find(int64_t Piece::*first, int64_t index) const {
    const auto end = pieces.begin() + count;
    return *(std::upper_bound(pieces.begin(), end, index,
                              [&](int64_t wanted, const Piece& piece) { return wanted < piece.*first; }) -
             1);
  }
};

int64_t tiles_of(std::span<const Product> products) {
  int64_t total = 0;
  for (const Product& product : products) total += tiles(product.columns);
  return total;
}

bool multiplies_pairs(const InputRows& input, std::span<const Product> products, const WorkspaceOptions& options) {
  const bool bf16 = std::ranges::all_of(products, [](const Product& p) { return p.weights.type == PanelType::bf16; });
  return options.bf16_products && bf16 && input.depth % 2 == 0 && has_bf16_products();
}

// Where the rows of all groups are cut into batches.
struct Place {
  size_t group = 0;
  int64_t row = 0;  // of the group
};

// The next rows of the groups, up to `most_rows`; moves `place` behind them.
void fill(Batch& batch, const InputRows& input, std::span<const ProductGroup> groups, int64_t most_rows,
          const WorkspaceOptions& options, Place& place) {
  batch.count = batch.rows = 0;
  for (; place.group < groups.size(); ++place.group, place.row = 0) {
    const ProductGroup& group = groups[place.group];
    const int64_t left = group.count - place.row;
    if (left == 0) continue;
    // A group that fits into the next batch is not cut: its weights then come from memory once.
    const bool fits = batch.rows + left <= most_rows;
    if (!fits && batch.rows > 0) return;
    const int64_t rows = std::min(left, most_rows);
    batch.pieces[static_cast<size_t>(batch.count++)] = {
        .group = &group,
        .packed = {.data = nullptr,
                   .rows = rows,
                   .depth = input.depth,
                   .pairs = multiplies_pairs(input, group.products, options)},
        .first = group.first + place.row,
        .first_index = batch.rows,
        .first_run = 0};
    batch.rows += rows;
    place.row += rows;
    if (!fits) return;
  }
}

// Gives the pieces their memory and their runs of `columns`, and returns how many tiles a run has: a multiple of what
// the kernels take, small enough that the threads end together.
int64_t lay_out(Batch& batch, int64_t depth, float* memory, const Threads& threads) {
  const auto pieces = std::span(batch.pieces).first(static_cast<size_t>(batch.count));
  int64_t total = 0;
  for (const Piece& piece : pieces) total += tiles_of(piece.group->products);
  constexpr int64_t kSmall = 4;
  constexpr int64_t kLarge = 16;
  const int64_t size = total >= 8 * kLarge * threads.count() ? kLarge : kSmall;
  batch.runs = batch.operations = 0;
  for (Piece& piece : pieces) {
    piece.packed.data = memory + piece.first_index * blocks(depth) * kBlock;
    piece.first_run = batch.runs;
    for (const Product& product : piece.group->products) {
      batch.runs += (tiles(product.columns) + size - 1) / size;
      batch.operations += piece.packed.rows * depth * product.columns;
    }
  }
  return size;
}

// The `index`-th run of all products' tiles.
ColumnRun find_run(std::span<const Product> products, int64_t size, int64_t index) {
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

void matmul(const InputRows& input, std::span<const ProductGroup> groups, MatmulScratch& scratch,
            const Threads& threads, const WorkspaceOptions& options) {
  const int64_t most_rows = rows_at_once(options.caches);
  scratch.reserve(threads.count(), static_cast<size_t>(kDecodedTiles * kTile * kBlock + most_rows * kTile));
  Batch batch;
  Place place;
  for (fill(batch, input, groups, most_rows, options, place); batch.rows > 0;
       fill(batch, input, groups, most_rows, options, place)) {
    float* memory = scratch.rows(static_cast<size_t>(batch.rows * blocks(input.depth) * kBlock));
    const int64_t size = lay_out(batch, input.depth, memory, threads);
    threads.for_work(batch.rows * input.depth).for_each(batch.rows, [&](int64_t index, int) {
      const Piece& piece = batch.find(&Piece::first_index, index);
      const int64_t row = index - piece.first_index;
      HWY_DYNAMIC_DISPATCH(pack_row)(input, piece.first + row, row, piece.packed);
    });
    threads.for_work(batch.operations).for_each(batch.runs, [&](int64_t index, int thread) {
      const Piece& piece = batch.find(&Piece::first_run, index);
      HWY_DYNAMIC_DISPATCH(multiply_run)
      (piece.packed, find_run(piece.group->products, size, index - piece.first_run), piece.first,
       scratch.of_thread(thread));
    });
  }
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
