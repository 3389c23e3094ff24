#include "support/stored_weight.h"

#include <cstring>

#include "support/numbers.h"

namespace regard::test {
namespace {

template <class T>
void put(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

void put_number(WeightType type, float value, std::byte* to) {
  switch (type) {
    case WeightType::f32:
      return put(to, value);
    case WeightType::f64:
      return put(to, static_cast<double>(value) / 3);  // not an f32
    case WeightType::bf16:
      return put(to, BFloat16(value));
    case WeightType::f16:
      return put(to, Float16(value));
    case WeightType::f8_e4m3:
      return put(to, Float8E4M3(value));
    case WeightType::f8_e5m2:
      return put(to, Float8E5M2(value));
    case WeightType::i8:
      return put(to, static_cast<int8_t>(value * 127));
    case WeightType::u8:
      return put(to, static_cast<uint8_t>(127 + value * 127));
    case WeightType::i32:
      return put(to, static_cast<int32_t>(value * 1e9F));
    case WeightType::i64:
      return put(to, static_cast<int64_t>(value * 1e12F));
    default:
      return put(to, static_cast<uint8_t>(value > 0));
  }
}

}  // namespace

std::vector<int64_t> half_offsets(WeightType type) {
  switch (type) {
    case WeightType::q8_0:
    case WeightType::q4_0:
    case WeightType::q5_0:
      return {0};
    case WeightType::q4_1:
    case WeightType::q5_1:
    case WeightType::q4_k:
    case WeightType::q5_k:
      return {0, 2};
    case WeightType::q6_k:
      return {208};
    default:
      return {};
  }
}

StoredWeight random_weight(WeightType type, int64_t rows, int64_t columns, uint64_t seed) {
  Numbers numbers(seed);
  const WeightBlock block = block_of(type);
  StoredWeight weight{.type = type, .rows = rows, .columns = columns};
  const int64_t blocks = rows * columns / block.values;
  weight.bytes = numbers.bytes(blocks * block.bytes);
  for (int64_t b = 0; b < blocks; ++b) {
    std::byte* bytes = weight.bytes.data() + b * block.bytes;
    if (!is_quantized(type)) put_number(type, numbers.next(), bytes);
    for (const int64_t offset : half_offsets(type)) put(bytes + offset, Float16(numbers.next() / 32));
  }
  return weight;
}

}  // namespace regard::test
