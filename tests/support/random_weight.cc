#include "support/random_weight.h"

#include <cmath>
#include <cstring>

namespace regard::test {
namespace {

template <class T>
std::vector<std::byte> plain(int64_t count, double deviation, Random& random) {
  std::vector<std::byte> bytes(static_cast<size_t>(count) * sizeof(T));
  for (size_t i = 0; i < bytes.size(); i += sizeof(T)) {
    const auto number = static_cast<T>(random.normal(deviation));
    std::memcpy(bytes.data() + i, &number, sizeof(T));
  }
  return bytes;
}

// Where a block keeps its scale and its minimum as f16 (-1: none), and what integers (times inner scales) deviate by.
struct BlockFields {
  int64_t scale_at;
  int64_t minimum_at;
  double integers;
  double minimums;
};

BlockFields fields_of(WeightType type) {
  switch (type) {
    case WeightType::q8_0:
      return {0, -1, 74, 1};
    case WeightType::q4_0:
      return {0, -1, 4.6, 1};
    case WeightType::q4_1:
      return {0, 2, 4.6, -0.6};
    case WeightType::q5_0:
      return {0, -1, 9.2, 1};
    case WeightType::q5_1:
      return {0, 2, 9.2, -0.6};
    case WeightType::q4_k:
      return {0, 2, 4.6 * 32, 20};
    case WeightType::q5_k:
      return {0, 2, 9.2 * 32, 20};
    default:  // q6_k
      return {208, -1, 18 * 74, 1};
  }
}

void write_half(std::byte* to, double number) {
  const Float16 half(static_cast<float>(number));
  std::memcpy(to, &half.bits, sizeof(half.bits));
}

std::vector<std::byte> quantized(WeightType type, int64_t count, double deviation, Random& random) {
  const WeightBlock block = block_of(type);
  const BlockFields fields = fields_of(type);
  std::vector<std::byte> bytes(static_cast<size_t>(count / block.values * block.bytes));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.integer(0, 255));
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(block.bytes)) {
    std::byte* first = bytes.data() + at;
    const double size = deviation * std::exp(0.3 * static_cast<double>(random.normal()));
    write_half(first + fields.scale_at, size / fields.integers);
    if (fields.minimum_at >= 0) write_half(first + fields.minimum_at, size / fields.minimums);
  }
  return bytes;
}

}  // namespace

std::vector<std::byte> random_weight(WeightType type, int64_t rows, int64_t columns, double deviation, Random& random) {
  const int64_t count = rows * columns;
  switch (type) {
    case WeightType::f32:
      return plain<float>(count, deviation, random);
    case WeightType::f64:
      return plain<double>(count, deviation, random);
    case WeightType::bf16:
      return plain<BFloat16>(count, deviation, random);
    case WeightType::f16:
      return plain<Float16>(count, deviation, random);
    case WeightType::f8_e4m3:
      return plain<Float8E4M3>(count, deviation, random);
    case WeightType::f8_e5m2:
      return plain<Float8E5M2>(count, deviation, random);
    default:
      return quantized(type, count, deviation, random);
  }
}

}  // namespace regard::test
