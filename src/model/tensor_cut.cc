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

CutTensor cut_rows(const StoredTensor& tensor, const std::vector<Run>& runs) {
  CutTensor cut{.type = tensor.type, .shape = {}, .bytes = {}, .own = {}};
  std::vector<int64_t> sizes(tensor.shape.begin(), tensor.shape.end());
  require(sizes.size() > 1 || !is_quantized(tensor.type),
          "checkpoint: tensor \"{}\" is a vector of {}, expected a plain type where it is cut", tensor.name,
          name_of(tensor.type));
  const int64_t row_bytes = static_cast<int64_t>(tensor.bytes.size()) / sizes[0];
  sizes[0] = total(runs);
  cut.shape = Shape(sizes);
  if (runs.size() == 1 && runs[0].first >= 0) {
    cut.bytes = tensor.bytes.subspan(static_cast<size_t>(runs[0].first * row_bytes),
                                     static_cast<size_t>(runs[0].count * row_bytes));
    return cut;
  }
  own(cut, sizes[0] * row_bytes);
  copy_runs(tensor.bytes, runs, row_bytes, cut.own.data());
  return cut;
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
  if (cut.axis == 0) return cut_rows(tensor, cut.runs);
  const WeightView weight = tensor.matrix();
  return between_blocks(cut.runs, block_of(weight.type).values) ? cut_blocks(weight, cut.runs)
                                                                : cut_decoded(weight, cut.runs);
}

}  // namespace regard
