#pragma once

#include <cstdint>
#include <span>

#include "parallel/traffic.h"
#include "regard/model_spec.h"
#include "regard/parallel.h"

namespace regard {

// What ranks send in a call of a layer's Mlp with so many tokens: what Communicator::bytes_sent counts, byte for byte.
// With sequence parallelism `own_tokens` are those that each rank has [tp]; else it is empty.
[[nodiscard]] LayerTraffic mlp_traffic(const std::variant<DenseMlp, ExpertsMlp>& mlp, int64_t hidden_size,
                                       int64_t tokens, std::span<const int64_t> own_tokens,
                                       const ParallelConfig& config, int64_t ranks_per_host);

// What they send so that all have the rows of the residual stream that each had.
[[nodiscard]] LayerTraffic gathered_rows_traffic(int64_t hidden_size, std::span<const int64_t> own_tokens,
                                                 int64_t ranks_per_host);

}  // namespace regard
