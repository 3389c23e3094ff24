#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "regard/tensor.h"
#include "regard/weight.h"
#include "regard/workspace.h"

namespace regard {

namespace kernels {
enum class PanelType : uint8_t;
struct PanelView;
}  // namespace kernels

/// How a checkpoint stores a matrix [rows, columns]: its values and, where those are integers or fp8, what turns them
/// into numbers: value[r][c] = (values[r][c] - zeros[r][g]) * scales[r][g], with g the group of column c.
struct StoredMatrix {
  StoredMatrix() = default;
  /// Values that are the numbers.
  StoredMatrix(const WeightView& view) : values(view) {}  // NOLINT(google-explicit-constructor): the common case

  WeightView values;        ///< Any type; i8, u8 or f8_e4m3 where there are scales.
  bool transposed = false;  ///< values, scales and zeros are stored [columns, rows]; plain types only.
  WeightView scales;        ///< f32, bf16 or f16; empty: none. One number, [rows], or, with groups, [rows, groups].
  WeightView zeros;         ///< i8 or u8, as many as there are scales; empty: all are 0. Not for f8_e4m3.
  int64_t group = 0;        ///< Columns that share a scale, a divisor of columns; 0: all of them.
  /// The columns in the order of their groups (act-order): columns order[g * group] to order[(g + 1) * group - 1] have
  /// scale g. A permutation; empty: 0, 1, 2 and so on.
  std::vector<int64_t> order;

  [[nodiscard]] bool empty() const { return values.empty(); }
  [[nodiscard]] int64_t rows() const { return transposed ? values.columns : values.rows; }
  [[nodiscard]] int64_t columns() const { return transposed ? values.rows : values.columns; }
  /// Throws Error if the parts do not fit each other as said above.
  void check() const;
};

/// Decodes one row to f32, each number rounded once; `out` has `columns` elements. Throws Error where `check` does, or
/// for a row that is not there.
void decode_row(const StoredMatrix& matrix, int64_t row, std::span<float> out);

/// Columns first .. first+count-1 of a stored matrix, or, where first is -1, so many columns of zeros.
struct Columns {
  int64_t first = 0;
  int64_t count = 0;
};

/// A weight matrix [rows, columns] in the layout that the kernels read. It keeps the numbers of the checkpoint: f32,
/// bf16 and f16 as they are, quantised blocks and scaled integers as their integers, scales and minimums; other types
/// become f32, scaled f8_e4m3 with one rounding where its scales are f32. Where columns are cut through the groups of a
/// quantised type, it gets smaller groups, or becomes f32 where that takes no more memory, or where the groups have an
/// order. A minimum is (offset - zero) * scale, rounded once where scales are f32.
///
/// Thread safety: several threads may call const methods at once.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  /// Row r is row rows[r] of the matrix, or zeros where that is -1; its columns are those of all of `columns`, one
  /// after the other, and each of them may be multiplied alone. Empty: all rows, all columns, as stored. Of the
  /// matrix's bytes only those are read that hold what is asked for, which for quantised types are whole blocks. Throws
  /// Error for NaN in what is read, for parts of the matrix that do not fit, or for rows and columns that are not
  /// there.
  [[nodiscard]] static PackedMatrix pack(const StoredMatrix& matrix, const Threads& threads,
                                         std::span<const int64_t> rows = {}, std::span<const Columns> columns = {});

  [[nodiscard]] bool empty() const { return rows_ == 0; }
  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t columns() const { return columns_; }
  /// Bytes in memory.
  [[nodiscard]] int64_t bytes() const { return static_cast<int64_t>(buffer_.size()); }
  /// The type that the checkpoint stored.
  [[nodiscard]] WeightType source_type() const { return source_type_; }
  /// One row as f32. Throws Error if it is not there.
  void decode_row(int64_t row, std::span<float> out) const;

  /// The column that is the k-th in the panel; empty: column k. For the library's own use, as `panel`.
  [[nodiscard]] std::span<const int64_t> order() const { return order_; }
  /// What the kernels read.
  [[nodiscard]] kernels::PanelView panel() const;

 private:
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  WeightType source_type_ = WeightType::f32;
  kernels::PanelType panel_type_{};
  int64_t group_ = 0;  // columns that share a scale; 0: none do
  std::vector<int64_t> order_;
  Buffer buffer_;
};

/// out = x W^T + bias, the linear layer of checkpoints.
///
/// Thread safety: several threads may apply a layer at once, each with a workspace of its own.
class Linear {
 public:
  Linear() = default;
  /// Packs what PackedMatrix::pack does. `bias` has a number for each stored row, or is empty; `rows` apply to it as
  /// well. Throws Error where packing does, or for a bias of another size or with NaN.
  [[nodiscard]] static Linear load(const StoredMatrix& matrix, std::span<const float> bias, const Threads& threads,
                                   std::span<const int64_t> rows = {}, std::span<const Columns> columns = {});

  [[nodiscard]] bool empty() const { return weight_.empty(); }
  [[nodiscard]] int64_t rows() const { return weight_.rows(); }
  [[nodiscard]] int64_t columns() const { return weight_.columns(); }
  [[nodiscard]] const PackedMatrix& weight() const { return weight_; }
  [[nodiscard]] const std::vector<float>& bias() const { return bias_; }  ///< [rows], or empty.
  /// Bytes of the packed matrix.
  [[nodiscard]] int64_t bytes() const { return weight_.bytes(); }

 private:
  PackedMatrix weight_;
  std::vector<float> bias_;
};

/// Applies layers to the same rows in one go: x [tokens, columns] (f32, bf16 or f16), outs[i] [tokens, layers[i]->rows]
/// in f32. The last axis must be dense. At most 8 layers. Throws Error if shapes disagree.
void apply(std::span<const Linear* const> layers, ConstTensorView x, std::span<const TensorView> outs,
           Workspace& workspace);

/// out = x W^T over columns first..first+count-1 of W alone: x [tokens, columns of W]. No bias; else as above.
void apply_columns(const PackedMatrix& weight, ConstTensorView x, int64_t first, int64_t count, TensorView out,
                   Workspace& workspace);

/// The rows first..first+count-1 of a grouped product, and the layers that they go through.
struct RowGroup {
  int64_t first = 0;
  int64_t count = 0;
  std::span<const Linear* const> layers;
};

/// Applies to each group of rows the layers of its own, in one go: outs[j] [rows, layers[j]->rows] of every group, in
/// f32. Row m of the product is row index[m] of x, or row m where `index` is empty. Groups lie one after the other and
/// cover all rows. A row's bits are those that `apply` gives. Throws Error if shapes or the groups disagree, or an
/// index names a row that x does not have.
void apply_grouped(std::span<const RowGroup> groups, ConstTensorView x, std::span<const int64_t> index,
                   std::span<const TensorView> outs, Workspace& workspace);

/// The same with one layer a group, over columns first..first+count-1 alone, and without bias: x [rows, columns].
void apply_grouped_columns(std::span<const RowGroup> groups, ConstTensorView x, int64_t first, int64_t count,
                           TensorView out, Workspace& workspace);

}  // namespace regard
