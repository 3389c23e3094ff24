#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "regard/dtype.h"

namespace regard {

/// How a checkpoint stores the numbers of a weight: the plain types, and GGUF's blocks of quantised values along a row.
enum class WeightType : uint8_t {
  f32,
  f64,
  bf16,
  f16,
  f8_e4m3,
  f8_e5m2,
  i8,
  u8,
  i32,
  i64,
  boolean,
  q8_0,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q4_k,
  q5_k,
  q6_k
};

/// A block is the smallest unit a row is stored in: `values` numbers in `bytes` bytes. Plain types have blocks of one.
struct WeightBlock {
  int64_t values;
  int64_t bytes;
};
[[nodiscard]] WeightBlock block_of(WeightType type);
[[nodiscard]] std::string_view name_of(WeightType type);
[[nodiscard]] WeightType weight_type_of(DType dtype);

/// A weight matrix [rows, columns] as a checkpoint stores it; somebody else owns the bytes. A vector has one row.
/// Invariants (checked by `WeightView::make`): columns is a multiple of the block's values; bytes has exactly
/// rows * columns / values * block bytes.
struct WeightView {
  WeightType type = WeightType::f32;
  int64_t rows = 0;
  int64_t columns = 0;
  std::span<const std::byte> bytes;

  /// Throws Error when the invariants do not hold.
  [[nodiscard]] static WeightView make(WeightType type, int64_t rows, int64_t columns,
                                       std::span<const std::byte> bytes);
  [[nodiscard]] bool empty() const { return bytes.empty(); }
  [[nodiscard]] int64_t row_bytes() const { return columns / block_of(type).values * block_of(type).bytes; }
  [[nodiscard]] std::span<const std::byte> row(int64_t index) const;
  /// Rows first .. first+count-1.
  [[nodiscard]] WeightView row_range(int64_t first, int64_t count) const;
};

/// Whether a type stores integers with a scale (and perhaps a minimum) for each group along the row.
[[nodiscard]] bool is_quantized(WeightType type);
/// Values that share a scale; 0 for plain types.
[[nodiscard]] int64_t group_of(WeightType type);

/// A quantised row, taken apart: value = integer * scale + minimum, with one scale and one minimum a group.
/// Types without minimums leave theirs zero. 4-bit types have integers 0..15.
struct QuantizedRow {
  std::span<int8_t> integers;  ///< [columns]
  std::span<float> scales;     ///< [columns / group_of(type)]
  std::span<float> minimums;   ///< [columns / group_of(type)]
};
/// Throws Error if the type is not quantised or the sizes disagree.
void unpack_row(const WeightView& weight, int64_t row, const QuantizedRow& out);

/// Decodes one row to f32: quantised values as integer * scale + minimum with one rounding. `out` has view.columns
/// elements. f64 and integers round to f32. Throws Error if sizes disagree.
void decode_row(const WeightView& weight, int64_t row, std::span<float> out);

}  // namespace regard
