#pragma once

#include <cstdint>
#include <vector>

#include "parallel/traffic.h"
#include "regard/model_spec.h"
#include "regard/parallel.h"

namespace regard {

// What ranks send in a call of Model::forward with a cache, all of whose spans are of one stage: what
// Communicator::bytes_sent counts, byte for byte.
struct ModelTraffic {
  LayerTraffic attention;  // of all layers
  LayerTraffic rest;       // of all MLPs, and of the last hidden states where sequence parallelism divides them

  // Bytes of a rank.
  [[nodiscard]] int64_t of_rank(size_t rank) const { return attention.ranks[rank].total() + rest.ranks[rank].total(); }
  [[nodiscard]] int64_t most_of_a_rank() const;
};

enum class Stage : uint8_t { prefill, decode };

[[nodiscard]] ModelTraffic model_traffic(const ModelSpec& model, Stage stage, const std::vector<TokenRun>& runs,
                                         DType cache, const ParallelConfig& config, int64_t ranks_per_host);

}  // namespace regard
