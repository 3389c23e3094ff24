#pragma once

#include <cstdint>
#include <vector>

#include "regard/weight.h"

namespace regard::test {

/// A weight matrix and its bytes, as a checkpoint would store them.
struct StoredWeight {
  WeightType type = WeightType::f32;
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<std::byte> bytes;

  [[nodiscard]] WeightView view() const { return WeightView::make(type, rows, columns, bytes); }
};

/// Every type that a checkpoint may store.
inline constexpr WeightType kAllWeightTypes[] = {
    WeightType::f32,     WeightType::f64,  WeightType::bf16, WeightType::f16,  WeightType::f8_e4m3,
    WeightType::f8_e5m2, WeightType::i8,   WeightType::u8,   WeightType::i32,  WeightType::i64,
    WeightType::boolean, WeightType::q8_0, WeightType::q4_0, WeightType::q4_1, WeightType::q5_0,
    WeightType::q5_1,    WeightType::q4_k, WeightType::q5_k, WeightType::q6_k};

/// Random finite numbers: any integers in the quantised types, with scales and minimums of ordinary size.
[[nodiscard]] StoredWeight random_weight(WeightType type, int64_t rows, int64_t columns, uint64_t seed);

/// Byte offsets of a block's f16 scales and minimums; empty for plain types.
[[nodiscard]] std::vector<int64_t> half_offsets(WeightType type);

}  // namespace regard::test
