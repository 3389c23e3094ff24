#include "model/tensor_reader.h"

#include <algorithm>
#include <cmath>

#include "checkpoint/read_tensor.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Index `index` of the first axis.
StoredTensor slice_of(const StoredTensor& tensor, int64_t index) {
  require(tensor.shape.rank() >= 2 && index < tensor.shape[0],
          "checkpoint: tensor \"{}\" has shape {}, expected one matrix or vector for each of more than {} experts",
          tensor.name, tensor.shape, index);
  StoredTensor slice = tensor;
  slice.shape = Shape(std::vector<int64_t>(tensor.shape.begin() + 1, tensor.shape.end()));
  const size_t bytes = tensor.bytes.size() / static_cast<size_t>(tensor.shape[0]);
  slice.bytes = tensor.bytes.subspan(static_cast<size_t>(index) * bytes, bytes);
  return slice;
}

std::vector<float> numbers_of(const StoredTensor& tensor) {
  const WeightView view = WeightView::make(tensor.type, 1, tensor.shape.elements(), tensor.bytes);
  std::vector<float> values(static_cast<size_t>(view.columns));
  decode_row(view, 0, values);
  require(std::ranges::none_of(values, [](float value) { return std::isnan(value); }),
          "checkpoint: tensor \"{}\" holds NaN", tensor.name);
  return values;
}

}  // namespace

StoredTensor TensorReader::stored(const std::string& name, const TensorName& spelled, int64_t expert) {
  const StoredTensor& whole = checkpoint_.tensor(name);
  read_.insert(name);
  return spelled.stacked ? slice_of(whole, expert) : whole;
}

StoredMatrix TensorReader::matrix(const TensorPlace& place, int64_t rows, int64_t columns) {
  const TensorName spelled = names_.of(place.part, place.layer, place.expert);
  const StoredTensor tensor = stored(spelled.weight, spelled, place.expert);
  const int64_t stored_rows = spelled.rows == RowsOf::all ? rows : 2 * rows;
  const Shape expected = spelled.transposed ? Shape{columns, stored_rows} : Shape{stored_rows, columns};
  require(tensor.shape == expected, "checkpoint: tensor \"{}\" has shape {}, expected {}{}", tensor.name, tensor.shape,
          expected, spelled.stacked ? " for each expert" : "");
  require_numbers(tensor);
  StoredMatrix matrix(tensor.matrix());
  matrix.transposed = spelled.transposed;
  return matrix;
}

std::vector<int64_t> TensorReader::rows_of(const TensorPlace& place, int64_t count) const {
  const RowsOf which = names_.of(place.part, place.layer, place.expert).rows;
  if (which == RowsOf::all) return {};
  const bool in_turns = which == RowsOf::even || which == RowsOf::odd;
  const int64_t first = which == RowsOf::odd ? 1 : which == RowsOf::second_half ? count : 0;
  std::vector<int64_t> rows(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) rows[static_cast<size_t>(i)] = first + i * (in_turns ? 2 : 1);
  return rows;
}

std::vector<float> TensorReader::vector(const TensorPlace& place, int64_t size) {
  const TensorName spelled = names_.of(place.part, place.layer, place.expert);
  std::vector<float> values = numbers_of(stored(spelled.weight, spelled, place.expert));
  require(static_cast<int64_t>(values.size()) == size, "checkpoint: tensor \"{}\" has {} numbers, expected {}",
          spelled.weight, values.size(), size);
  return values;
}

std::vector<float> TensorReader::bias(const TensorPlace& place) {
  const TensorName spelled = names_.of(place.part, place.layer, place.expert);
  return numbers_of(stored(spelled.bias, spelled, place.expert));
}

void TensorReader::require_all_read(std::string_view prefix) const {
  constexpr size_t kShown = 5;
  std::vector<std::string> left;
  for (const StoredTensor& tensor : checkpoint_.tensors()) {
    const bool known = read_.contains(tensor.name) || std::ranges::any_of(names_.ignored, [&](const auto& end) {
                         return std::string_view(tensor.name).ends_with(end);
                       });
    if (!known && tensor.name.starts_with(prefix)) left.push_back(printable(tensor.name));
  }
  if (left.empty()) return;
  const size_t shown = std::min(left.size(), kShown);
  std::string names;
  for (size_t i = 0; i < shown; ++i) names += fmt::format("{}\"{}\"", i == 0 ? "" : ", ", left[i]);
  if (shown < left.size()) names += fmt::format(" and {} more", left.size() - shown);
  fail("checkpoint: {} holds tensors that this model does not use: {}; leaving them out would change what it computes",
       checkpoint_.path().string(), names);
}

}  // namespace regard
