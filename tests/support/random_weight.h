#pragma once

#include <cstddef>
#include <vector>

#include "regard/weight.h"
#include "support/random.h"

namespace regard::test {

// Bytes of a random matrix [rows, columns] of any floating or quantised type; its numbers deviate by about `deviation`
// from about 0. `columns` is a multiple of the type's block.
std::vector<std::byte> random_weight(WeightType type, int64_t rows, int64_t columns, double deviation, Random& random);

}  // namespace regard::test
