#pragma once

#include <cstddef>
#include <cstdint>

#include "regard/weight.h"

// The layouts that the microkernel reads. Everything the kernels multiply by is a panel: projection weights, the key
// cache, the value cache.
namespace regard::kernels {

/// Rows of a panel tile: one AVX-512 vector of f32, two of AVX2, four of NEON.
inline constexpr int64_t kTile = 16;

/// A sum over k starts afresh at every multiple of kBlock, and the block sums are added in order. The places are fixed,
/// so that an output's bits never depend on how the work was cut; 256 keeps a tile of a block (16 KB of f32) in the L1
/// cache and the rounding error of long sums small.
inline constexpr int64_t kBlock = 256;

[[nodiscard]] constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
[[nodiscard]] constexpr int64_t tiles(int64_t rows) { return (rows + kTile - 1) / kTile; }
[[nodiscard]] constexpr int64_t blocks(int64_t depth) { return (depth + kBlock - 1) / kBlock; }

/// How the elements of a panel are stored. A tile holds, for each k, 16 rows' elements side by side.
/// The 8-bit and 4-bit types of caches have no scales inside: a token's scale multiplies its scores, or its weights.
/// The grouped types cut k into groups; a group of a tile is: 16 scales, 16 minimums if the type has them, then the
/// integers; value = scale * integer + minimum.
enum class PanelType : uint8_t {
  f32,
  bf16,
  f16,
  f8_e4m3,  ///< read as 2^-8 of its number, NaN as a number: whoever stores it sees to both
  f8_e5m2,
  i8_unscaled,
  i4_unscaled,  ///< signed 4 bits: byte i holds row i in its low half and row i + 8 in its high half, each as value + 8
  i8,           ///< int8, f16 scales, no minimum
  i8_wide,      ///< int8, f32 scales and minimums
  u4,           ///< unsigned 4 bits, f16 scales and minimums; a byte holds k in its low half and k + 1 in its high half
  u4_wide,      ///< unsigned 4 bits, f32 scales and minimums
};

/// Bytes of a group's scales and minimums, and of the elements of one k, in one tile.
struct PanelTypeInfo {
  int64_t header_bytes;
  int64_t bytes_per_two_k;
};
[[nodiscard]] constexpr PanelTypeInfo info_of(PanelType type) {
  switch (type) {
    case PanelType::f32:
      return {0, 128};
    case PanelType::bf16:
    case PanelType::f16:
      return {0, 64};
    case PanelType::f8_e4m3:
    case PanelType::f8_e5m2:
    case PanelType::i8_unscaled:
      return {0, 32};
    case PanelType::i4_unscaled:
      return {0, 16};
    case PanelType::i8:
      return {32, 32};
    case PanelType::i8_wide:
      return {128, 32};
    case PanelType::u4:
      return {64, 16};
    case PanelType::u4_wide:
      return {128, 16};
  }
  return {};
}

/// Tiles of a panel, from some k on. Quantised panels start at a multiple of their group.
struct PanelView {
  PanelType type = PanelType::f32;
  int32_t group = 0;  ///< k's that share a scale, even; 0 for plain types.
  const std::byte* data = nullptr;
  int64_t tile_bytes = 0;  ///< From one tile to the next.
  int64_t ahead = 0;       ///< Bytes from here to what will be read next of this kind: it is prefetched meanwhile.

  [[nodiscard]] bool is_grouped() const { return group != 0; }
  /// Bytes of `depth` k's of one tile.
  [[nodiscard]] int64_t bytes_of(int64_t depth) const {
    const auto info = info_of(type);
    return depth * info.bytes_per_two_k / 2 + (group == 0 ? 0 : depth / group * info.header_bytes);
  }
  [[nodiscard]] PanelView from(int64_t tile, int64_t k) const {
    PanelView view = *this;
    view.data += tile * tile_bytes + bytes_of(k);
    return view;
  }
};

/// What happens to the sums that the result of a product already holds.
enum class Sum : uint8_t {
  start,   ///< They are overwritten.
  resume,  ///< The chain of multiply-adds goes on from them.
  add,     ///< The finished sums of this block are added to them.
};

}  // namespace regard::kernels
