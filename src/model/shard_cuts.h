#pragma once

#include <map>
#include <string>

#include "families/family.h"
#include "model/tensor_cut.h"

namespace regard {

using TensorCuts = std::map<std::string, TensorCut, std::less<>>;

// How the tensors are cut that a rank does not hold as a whole, by name. Throws Error where a shape is not what the
// family says.
[[nodiscard]] TensorCuts shard_cuts(const Checkpoint& checkpoint, const Family& family, const CheckpointShard& shard);

}  // namespace regard
