#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "regard/tensor.h"

namespace regard::test {

/// Random numbers, the same for a seed on every machine.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : generator_(seed) {}

  /// In [-1, 1).
  float next() { return static_cast<float>(static_cast<double>(generator_() >> 11) * 0x1p-52 - 1.0); }
  std::vector<float> floats(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = next();
    return values;
  }
  std::vector<std::byte> bytes(int64_t count) {
    std::vector<std::byte> values(static_cast<size_t>(count));
    for (std::byte& value : values) value = static_cast<std::byte>(generator_() >> 56);
    return values;
  }
  Tensor tensor(const Shape& shape, DType dtype = DType::f32) {
    Tensor wide(DType::f32, shape);
    for (float& value : wide.elements<float>()) value = next();
    return convert(wide, dtype);
  }

 private:
  std::mt19937_64 generator_;
};

/// The bytes of a dense tensor: equal for equal bits, NaN or not.
inline std::vector<std::byte> bytes_of(ConstTensorView view) {
  const auto count = static_cast<size_t>(view.shape().elements()) * size_of(view.dtype());
  const ConstTensorView dense = view.reshape(view.shape());
  return {dense.data(), dense.data() + count};
}

/// A dense f32 tensor's elements, for comparisons.
inline std::vector<float> floats_of(ConstTensorView view) {
  const auto elements = view.elements<float>();
  return {elements.begin(), elements.end()};
}

/// A tensor that holds copies of `values`.
template <class T>
Tensor tensor_of(const Shape& shape, const std::vector<T>& values) {
  Tensor tensor(kDTypeOf<T>, shape);
  for (size_t i = 0; i < values.size(); ++i) tensor.elements<T>()[i] = values[i];
  return tensor;
}

}  // namespace regard::test
