#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "regard/weight.h"

namespace regard::test {

// GGUF's block formats as their publication (ggml's block_* structs and dequantize_row_*) describes them, number by
// number and in double precision, which holds every one of them exactly. Written to be read, and sharing no code with
// the library.
[[nodiscard]] double block_value(WeightType type, std::span<const std::byte> block, size_t index);

// Where a block has its f16 factors: those that any bits of would be no number.
[[nodiscard]] std::span<const size_t> half_places(WeightType type);

}  // namespace regard::test
