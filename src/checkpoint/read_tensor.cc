#include "checkpoint/read_tensor.h"

#include <algorithm>
#include <cmath>

#include "tensor/fail.h"

namespace regard {

std::vector<float> read_vector(const Checkpoint& checkpoint, const std::string& name) {
  const StoredTensor& stored = checkpoint.tensor(name);
  const WeightView view = WeightView::make(stored.type, 1, stored.shape.elements(), stored.bytes);
  std::vector<float> values(static_cast<size_t>(view.columns));
  decode_row(view, 0, values);
  require(std::ranges::none_of(values, [](float value) { return std::isnan(value); }),
          "checkpoint: tensor \"{}\" holds NaN", name);
  return values;
}

void require_numbers(const StoredTensor& tensor) {
  switch (tensor.type) {
    case WeightType::f8_e4m3:
    case WeightType::f8_e5m2:
    case WeightType::i8:
    case WeightType::u8:
    case WeightType::i32:
    case WeightType::i64:
    case WeightType::boolean:
      fail(
          "checkpoint: tensor \"{}\" is a matrix of {}; such weights have scales in other tensors, which this version "
          "does not read",
          tensor.name, name_of(tensor.type));
    default:
      return;
  }
}

}  // namespace regard
