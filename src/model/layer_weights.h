#pragma once

#include <optional>
#include <string_view>

#include "layers/mlp.h"
#include "layers/norm.h"
#include "model/tensor_reader.h"
#include "regard/attention.h"
#include "regard/model_spec.h"

namespace regard {

// The weights of one layer as the checkpoint stores them. In a checkpoint that was cut for ranks, matrices have the
// rank's heads and inner columns. Throw Error for tensors that are missing or have another shape than the spec says.
[[nodiscard]] AttentionWeights attention_weights(TensorReader& reader, const AttentionConfig& config, int64_t layer);
[[nodiscard]] MlpWeights mlp_weights(TensorReader& reader, const LayerSpec& spec, int64_t layer);
// The norm of that part; none if there is no spec.
[[nodiscard]] std::optional<Norm> norm_weights(TensorReader& reader, const std::optional<NormSpec>& spec,
                                               std::string_view part, int64_t layer, int64_t hidden_size);

// Throws Error for ranks that a checkpoint was not cut for.
void check_shard(const Checkpoint& checkpoint, const Ranks& ranks);

}  // namespace regard
