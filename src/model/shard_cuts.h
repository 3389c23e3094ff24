#pragma once

#include <map>
#include <string>

#include "families/tensor_names.h"
#include "model/tensor_cut.h"
#include "regard/checkpoint.h"
#include "regard/model_spec.h"

namespace regard {

using TensorCuts = std::map<std::string, TensorCut, std::less<>>;

// How the tensors are cut that a rank does not hold as a whole, by name. Throws Error where a shape is not what the
// spec says.
[[nodiscard]] TensorCuts shard_cuts(const Checkpoint& checkpoint, const ModelSpec& spec, const TensorNames& names,
                                    const CheckpointShard& shard);

}  // namespace regard
