#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "regard/attention.h"
#include "regard/checkpoint.h"
#include "regard/model_config.h"

namespace regard {

// How a model family's checkpoints spell what this library needs. One implementation for each form of file; a new
// family is a new pair of them, chosen in family_of.
class Family {
 public:
  virtual ~Family() = default;

  [[nodiscard]] virtual ModelConfig model() const = 0;
  // Not yet validated.
  [[nodiscard]] virtual AttentionConfig attention(int64_t layer) const = 0;
  // Names of tensors: "attention.q", "attention.k", "attention.v", "attention.output", "attention.norm", "mlp.norm",
  // "mlp.gate", "mlp.up", "mlp.down" of a layer; "embedding", "norm", "output" of the model. Without ".weight" or
  // ".bias".
  [[nodiscard]] virtual std::string layer_tensor(int64_t layer, std::string_view part) const = 0;
  [[nodiscard]] virtual std::string model_tensor(std::string_view part) const = 0;
  // The stored row that is row r of q or k in half-split order; empty: as stored.
  [[nodiscard]] virtual std::vector<int64_t> rotary_row_order(int64_t heads, int64_t head_dim) const = 0;
};

// The family of a checkpoint. Throws Error if it is not known.
[[nodiscard]] std::unique_ptr<Family> family_of(const Checkpoint& checkpoint);
[[nodiscard]] std::unique_ptr<Family> llama_gguf(const Checkpoint& checkpoint);
[[nodiscard]] std::unique_ptr<Family> llama_hugging_face(const Checkpoint& checkpoint);

// The same config. Throws Error, naming the checkpoint, for sizes that no model has.
[[nodiscard]] ModelConfig checked(ModelConfig model, const Checkpoint& checkpoint);

// A vector of a checkpoint as f32; empty if there is no such tensor. Throws Error if it holds NaN.
[[nodiscard]] std::vector<float> read_vector(const Checkpoint& checkpoint, const std::string& name);

// A weight matrix. Throws Error if there is none, or it is of a type that means nothing without scales beside it.
[[nodiscard]] WeightView read_matrix(const Checkpoint& checkpoint, const std::string& name);

}  // namespace regard
