#pragma once

#include <cstdint>
#include <string>

#include "regard/checkpoint.h"

namespace regard {

/// What a decoder needs to know of a model besides its attention.
struct ModelConfig {
  std::string family;  ///< "llama"
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  ///< Width of the MLP.
  int64_t vocab_size = 0;
  int64_t context_length = 0;  ///< Positions the model was made for.
  double rms_norm_eps = 1e-5;
  bool tied_embeddings = false;  ///< The output head is the embedding matrix.

  /// Throws Error for a family that this library does not load, or metadata that is missing or makes no sense.
  [[nodiscard]] static ModelConfig from(const Checkpoint& checkpoint);
};

}  // namespace regard
