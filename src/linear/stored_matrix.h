#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "regard/linear.h"
#include "regard/weight.h"

// Reading a matrix as a checkpoint stores it: runs of columns, rows that lie across memory, scales and zeros.
namespace regard {

// Columns that share a scale in the checkpoint; 0: none do.
[[nodiscard]] int64_t stored_group(const StoredMatrix& matrix);

// The blocks of a row that hold a run's columns, as a matrix of one row, and how many columns come before the first.
struct Cover {
  WeightView row;
  int64_t skipped;
};

[[nodiscard]] Cover cover_of(const WeightView& weight, int64_t row, const Columns& run);

// The rows of a tile out of a transposed matrix, where they lie across memory: all sixteen are read column by column.
class TransposedRows {
 public:
  TransposedRows() = default;
  TransposedRows(const WeightView& values, std::span<const Columns> runs, std::span<const int64_t> rows);

  // Panel columns to..to+count-1.
  [[nodiscard]] Cover cover(int64_t lane, int64_t to, int64_t count) const;

 private:
  WeightType type_ = WeightType::f32;
  int64_t size_ = 0;
  int64_t row_bytes_ = 0;
  std::vector<std::byte> bytes_;
};

// Number `index` of a matrix of a type that `StoredMatrix::check` lets pass beside scales, which f32 holds exactly.
[[nodiscard]] float number_at(const WeightView& view, int64_t index);

// The scales and zeros of a matrix.
class Scales {
 public:
  explicit Scales(const StoredMatrix& matrix);

  [[nodiscard]] float scale(int64_t row, int64_t column) const { return number_at(matrix_.scales, index(row, column)); }
  [[nodiscard]] float zero(int64_t row, int64_t column) const {
    return matrix_.zeros.empty() ? 0.0F : number_at(matrix_.zeros, index(row, column));
  }

 private:
  [[nodiscard]] int64_t index(int64_t row, int64_t column) const;

  const StoredMatrix& matrix_;
  int64_t group_;
  std::vector<int64_t> group_of_column_;
};

}  // namespace regard
