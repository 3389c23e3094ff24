#include "model/tensor_cut.h"

#include <algorithm>
#include <cstring>

#include "tensor/fail.h"

namespace regard {
namespace {

int64_t total(const std::vector<Run>& runs) {
  int64_t count = 0;
  for (const Run& run : runs) count += run.count;
  return count;
}

void own(CutTensor& cut, int64_t bytes) {
  cut.own = Buffer(static_cast<size_t>(bytes));
  cut.bytes = {cut.own.data(), cut.own.size()};
}

// Pieces of `unit` bytes from `from`, as the runs say. Zeros are zero already: blocks of them have a scale of zero.
void copy_runs(std::span<const std::byte> from, const std::vector<Run>& runs, int64_t unit, std::byte* to) {
  for (const Run& run : runs) {
    const auto count = static_cast<size_t>(run.count * unit);
    if (run.first >= 0 && count > 0) std::memcpy(to, from.data() + run.first * unit, count);
    to += count;
  }
}

// The shape of what is kept.
Shape cut_shape(const StoredTensor& tensor, const TensorCut& cut) {
  std::vector<int64_t> sizes(tensor.shape.begin(), tensor.shape.end());
  sizes[cut.axis] = total(cut.runs);
  return Shape(sizes);
}

// Along an axis before the last, whose indices are whole rows.
CutTensor cut_rows(const StoredTensor& tensor, const TensorCut& cut) {
  CutTensor kept{.type = tensor.type, .shape = cut_shape(tensor, cut), .bytes = {}, .own = {}};
  int64_t outer = 1;
  for (size_t i = 0; i < cut.axis; ++i) outer *= tensor.shape[i];
  const auto bytes = static_cast<int64_t>(tensor.bytes.size()) / outer;
  const int64_t unit = bytes / tensor.shape[cut.axis];
  if (outer == 1 && cut.runs.size() == 1 && cut.runs[0].first >= 0) {
    kept.bytes = tensor.bytes.subspan(static_cast<size_t>(cut.runs[0].first * unit),
                                      static_cast<size_t>(cut.runs[0].count * unit));
    return kept;
  }
  const int64_t kept_bytes = total(cut.runs) * unit;
  own(kept, outer * kept_bytes);
  for (int64_t i = 0; i < outer; ++i)
    copy_runs(tensor.bytes.subspan(static_cast<size_t>(i * bytes), static_cast<size_t>(bytes)), cut.runs, unit,
              kept.own.data() + i * kept_bytes);
  return kept;
}

bool between_blocks(const std::vector<Run>& runs, int64_t values) {
  return std::ranges::all_of(
      runs, [&](const Run& run) { return (run.first < 0 || run.first % values == 0) && run.count % values == 0; });
}

CutTensor cut_blocks(const WeightView& weight, const std::vector<Run>& columns) {
  const WeightBlock block = block_of(weight.type);
  std::vector<Run> runs;
  runs.reserve(columns.size());
  for (const Run& run : columns)
    runs.push_back({run.first < 0 ? -1 : run.first / block.values, run.count / block.values});
  CutTensor cut{.type = weight.type, .shape = {weight.rows, total(columns)}, .bytes = {}, .own = {}};
  const int64_t row_bytes = total(runs) * block.bytes;
  own(cut, weight.rows * row_bytes);
  for (int64_t row = 0; row < weight.rows; ++row)
    copy_runs(weight.row(row), runs, block.bytes, cut.own.data() + row * row_bytes);
  return cut;
}

CutTensor cut_decoded(const WeightView& weight, const std::vector<Run>& columns) {
  CutTensor cut{.type = WeightType::f32, .shape = {weight.rows, total(columns)}, .bytes = {}, .own = {}};
  constexpr auto kBytes = static_cast<int64_t>(sizeof(float));
  const int64_t row_bytes = total(columns) * kBytes;
  own(cut, weight.rows * row_bytes);
  std::vector<float> values(static_cast<size_t>(weight.columns));
  for (int64_t row = 0; row < weight.rows; ++row) {
    decode_row(weight, row, values);
    copy_runs(std::as_bytes(std::span(values)), columns, kBytes, cut.own.data() + row * row_bytes);
  }
  return cut;
}

}  // namespace

std::vector<Run> runs_of_heads(std::span<const int64_t> heads, int64_t width) {
  std::vector<Run> runs;
  for (size_t i = 0; i < heads.size(); ++i) {
    const bool follows = i > 0 && (heads[i] < 0 ? heads[i - 1] < 0 : heads[i - 1] >= 0 && heads[i - 1] + 1 == heads[i]);
    if (follows)
      runs.back().count += width;
    else
      runs.push_back({heads[i] < 0 ? -1 : heads[i] * width, width});
  }
  return runs;
}

CutTensor whole(const StoredTensor& tensor) {
  return {.type = tensor.type, .shape = tensor.shape, .bytes = tensor.bytes, .own = {}};
}

CutTensor cut_tensor(const StoredTensor& tensor, const TensorCut& cut) {
  const bool vector = tensor.shape.rank() == 1;
  require(!vector || !is_quantized(tensor.type),
          "checkpoint: tensor \"{}\" is a vector of {}, expected a plain type where it is cut", tensor.name,
          name_of(tensor.type));
  if (vector || cut.axis + 1 < tensor.shape.rank()) return cut_rows(tensor, cut);
  const WeightView weight = tensor.matrix();
  CutTensor kept = between_blocks(cut.runs, block_of(weight.type).values) ? cut_blocks(weight, cut.runs)
                                                                          : cut_decoded(weight, cut.runs);
  kept.shape = cut_shape(tensor, cut);
  return kept;
}

}  // namespace regard
