#include "linear/stored_matrix.h"

#include <cstring>

#include "tensor/fail.h"

namespace regard {
namespace {

template <class T>
float read_as(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return static_cast<float>(value);
}

}  // namespace

int64_t stored_group(const StoredMatrix& matrix) {
  if (matrix.scales.empty()) return group_of(matrix.values.type);
  return matrix.group == 0 ? matrix.columns() : matrix.group;
}

Cover cover_of(const WeightView& weight, int64_t row, const Columns& run) {
  const WeightBlock block = block_of(weight.type);
  const int64_t first = run.first / block.values;
  const int64_t count = (run.first + run.count + block.values - 1) / block.values - first;
  const auto bytes =
      weight.row(row).subspan(static_cast<size_t>(first * block.bytes), static_cast<size_t>(count * block.bytes));
  return {.row = {.type = weight.type, .rows = 1, .columns = count * block.values, .bytes = bytes},
          .skipped = run.first - first * block.values};
}

TransposedRows::TransposedRows(const WeightView& values, std::span<const Columns> runs, std::span<const int64_t> rows)
    : type_(values.type), size_(block_of(values.type).bytes) {
  int64_t columns = 0;
  for (const Columns& run : runs) columns += run.count;
  row_bytes_ = columns * size_;
  bytes_.resize(static_cast<size_t>(row_bytes_ * static_cast<int64_t>(rows.size())));
  int64_t to = 0;
  for (const Columns& run : runs) {
    for (int64_t i = 0; run.first >= 0 && i < run.count; ++i)
      for (size_t lane = 0; lane < rows.size(); ++lane)
        if (rows[lane] >= 0)
          std::memcpy(bytes_.data() + static_cast<int64_t>(lane) * row_bytes_ + (to + i) * size_,
                      values.bytes.data() + ((run.first + i) * values.columns + rows[lane]) * size_,
                      static_cast<size_t>(size_));
    to += run.count;
  }
}

Cover TransposedRows::cover(int64_t lane, int64_t to, int64_t count) const {
  const auto bytes = std::span(bytes_).subspan(static_cast<size_t>(lane * row_bytes_ + to * size_),
                                               static_cast<size_t>(count * size_));
  return {.row = {.type = type_, .rows = 1, .columns = count, .bytes = bytes}, .skipped = 0};
}

float number_at(const WeightView& view, int64_t index) {
  const std::byte* from = view.bytes.data() + index * block_of(view.type).bytes;
  switch (view.type) {
    case WeightType::f32:
      return read_as<float>(from);
    case WeightType::bf16:
      return read_as<BFloat16>(from);
    case WeightType::f16:
      return read_as<Float16>(from);
    case WeightType::f8_e4m3:
      return read_as<Float8E4M3>(from);
    case WeightType::i8:
      return read_as<int8_t>(from);
    case WeightType::u8:
      return read_as<uint8_t>(from);
    default:
      fail("weight: scales, zeros or scaled values of type {}", name_of(view.type));
  }
}

Scales::Scales(const StoredMatrix& matrix) : matrix_(matrix), group_(stored_group(matrix)) {
  if (matrix.order.empty()) return;
  group_of_column_.resize(matrix.order.size());
  for (size_t i = 0; i < matrix.order.size(); ++i)
    group_of_column_[static_cast<size_t>(matrix.order[i])] = static_cast<int64_t>(i) / group_;
}

int64_t Scales::index(int64_t row, int64_t column) const {
  if (matrix_.scales.rows * matrix_.scales.columns == 1) return 0;
  if (matrix_.group == 0) return row;
  const int64_t group = group_of_column_.empty() ? column / group_ : group_of_column_[static_cast<size_t>(column)];
  return matrix_.transposed ? group * matrix_.rows() + row : row * (matrix_.columns() / group_) + group;
}

void StoredMatrix::check() const {
  require(!transposed || !is_quantized(values.type), "weight: a transposed matrix is of type {}, expected a plain one",
          name_of(values.type));
  if (scales.empty()) {
    require(zeros.empty() && group == 0 && order.empty(),
            "weight: zeros, a group or an order are given, but no scales");
    return;
  }
  const bool f8 = values.type == WeightType::f8_e4m3;
  require(f8 || values.type == WeightType::i8 || values.type == WeightType::u8,
          "weight: scales are given for values of type {}, expected i8, u8 or f8_e4m3", name_of(values.type));
  require(scales.type == WeightType::f32 || scales.type == WeightType::bf16 || scales.type == WeightType::f16,
          "weight: scales have type {}, expected f32, bf16 or f16", name_of(scales.type));
  require(group == 0 || (group > 0 && columns() % group == 0),
          "weight: group is {}, expected 0 or a divisor of {} columns", group, columns());
  const int64_t count = scales.rows * scales.columns;
  require(group == 0 ? count == 1 || count == rows() : count == rows() * (columns() / group),
          "weight: a matrix of shape [{}, {}] with groups of {} columns has {} scales", rows(), columns(),
          group == 0 ? columns() : group, count);
  require(zeros.empty() || (!f8 && zeros.rows * zeros.columns == count &&
                            (zeros.type == WeightType::i8 || zeros.type == WeightType::u8)),
          "weight: {} zeros of type {} are given for {} values with {} scales, expected as many integers of 8 bits",
          zeros.rows * zeros.columns, name_of(zeros.type), name_of(values.type), count);
  if (order.empty()) return;
  std::vector<bool> named(static_cast<size_t>(columns()));
  bool permutation = order.size() == named.size();
  for (const int64_t column : order) {
    permutation = permutation && column >= 0 && column < columns() && !named[static_cast<size_t>(column)];
    if (permutation) named[static_cast<size_t>(column)] = true;
  }
  require(permutation, "weight: the order of {} columns has {} entries that are no permutation of them", columns(),
          order.size());
}

void decode_row(const StoredMatrix& matrix, int64_t row, std::span<float> out) {
  matrix.check();
  require(row >= 0 && row < matrix.rows() && static_cast<int64_t>(out.size()) == matrix.columns(),
          "weight: row {} of a matrix of shape [{}, {}] is decoded into {} values", row, matrix.rows(),
          matrix.columns(), out.size());
  const Columns all{.first = 0, .count = matrix.columns()};
  TransposedRows transposed;
  if (matrix.transposed) transposed = TransposedRows(matrix.values, std::span(&all, 1), std::span(&row, 1));
  decode_row(matrix.transposed ? transposed.cover(0, 0, all.count).row : matrix.values, matrix.transposed ? 0 : row,
             out);
  if (matrix.scales.empty()) return;
  const Scales scales(matrix);
  for (int64_t column = 0; column < matrix.columns(); ++column) {
    float& value = out[static_cast<size_t>(column)];
    value = (value - scales.zero(row, column)) * scales.scale(row, column);
  }
}

}  // namespace regard
