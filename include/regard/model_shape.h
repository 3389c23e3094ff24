#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "regard/checkpoint.h"
#include "regard/traffic.h"

namespace regard {

/// The MLP of a layer: matrices of hidden_size * width weights.
struct MlpShape {
  int64_t width = 0;
  int64_t matrices = 3;  ///< 3 with a gate, 2 without.
  int64_t experts = 1;   ///< MLPs of this shape, of which each token passes experts_per_token.
  int64_t experts_per_token = 1;
  int64_t shared_width = 0;  ///< Of an MLP beside the experts that every token passes; 0: none.

  friend bool operator==(const MlpShape&, const MlpShape&) = default;
};

/// The sizes of a decoder: enough to tell what it takes to run it, of far more families than this library loads.
struct ModelShape {
  /// Equal layers, wherever they stand.
  struct Layers {
    LayerShape attention;
    MlpShape mlp;
    int64_t count = 0;
  };

  std::string family;
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  bool tied_embeddings = false;  ///< The output head is the embedding matrix.
  std::vector<Layers> layers;    ///< By first appearance.
  /// Bytes that one weight takes in memory.
  double attention_weight_bytes = 2;
  double mlp_weight_bytes = 2;
  double embedding_weight_bytes = 2;

  /// From the text of a Hugging Face config.json of any decoder with the usual keys; `name` is what messages call it.
  /// Throws Error for what is no such file, sizes that no model has, and attention of another kind (linear, MLA).
  [[nodiscard]] static ModelShape from_config_json(std::string_view text, const std::string& name);
  /// From a checkpoint. Throws Error as from_config_json does, and for GGUF files of a family that is not loaded.
  [[nodiscard]] static ModelShape from(const Checkpoint& checkpoint);

  [[nodiscard]] int64_t num_layers() const;
  /// Bytes of all weights.
  [[nodiscard]] double weight_bytes() const;
};

}  // namespace regard
