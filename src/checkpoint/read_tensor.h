#pragma once

#include <string>
#include <vector>

#include "regard/checkpoint.h"

namespace regard {

// The numbers of a tensor as f32. Throws Error if there is no such tensor, or it holds NaN.
[[nodiscard]] std::vector<float> read_vector(const Checkpoint& checkpoint, const std::string& name);

// Throws Error if a tensor is of a type that means nothing without scales beside it.
void require_numbers(const StoredTensor& tensor);

}  // namespace regard
