#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/panel.h"

// The product of the microkernel on rows and panels of bf16, by instructions that multiply pairs: twice the
// multiply-adds a cycle. Both factors have eight bits then, which a caller has to allow. It is a kernel of its own
// because pairs of k are added at once: there is no chain of single multiply-adds that gives the same bits.
namespace regard::kernels {

/// Whether this machine has AVX512_BF16 and AVX-512 is not ruled out by `force_target`.
[[nodiscard]] bool has_bf16_products();

/// The left operand: rows of bf16, kBlock apart.
struct Bf16Rows {
  const uint16_t* data = nullptr;
  int64_t rows = 0;  ///< Any number.
};

/// c[row][0..16 * tile_count) = (or as Sum says) the sum over k in first..last of a[row][k] *
/// panel[k]. The panel is bf16 and, as the rows, starts at an even k of its block; pairs lie at even k. At an odd end
/// the other half of the pair counts as 0, whatever it holds.
void multiply_bf16(const Bf16Rows& a, const PanelView& panel, int64_t tile_count, int64_t first, int64_t last, Sum mode,
                   float* c, int64_t c_stride);

}  // namespace regard::kernels
