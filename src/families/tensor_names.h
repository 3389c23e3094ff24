#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace regard {

class Checkpoint;

// Which rows of a stored matrix, or numbers of a stored vector, are meant: checkpoints keep gate and up together.
enum class RowsOf : uint8_t { all, first_half, second_half, even, odd };

// Where a checkpoint keeps one matrix of a model, with its bias. {layer} and {expert} in the names stand for numbers.
struct TensorName {
  std::string weight;
  std::string bias;
  RowsOf rows = RowsOf::all;
  bool stacked = false;     // the first axis is that of experts
  bool transposed = false;  // stored as [columns, rows]
};

// The usual spelling: NAME.weight and NAME.bias.
[[nodiscard]] TensorName named(std::string_view name);

// How the tensors of a checkpoint are called, by what they are:
//     embedding, norm, head                                              of the model
//     attention.{norm,q,k,v,qkv,output,q_norm,k_norm,sinks,post_norm}    of a layer
//     mlp.{norm,gate,up,down,post_norm}                                  of a layer
//     mlp.{router,selection_bias}, expert.{gate,up,down}                 of a layer with experts, and of each expert
//     shared.{gate,up,down}, mlp.shared_gate                             of the MLP beside experts
class TensorNames {
 public:
  TensorNames() = default;
  // `prefix` stands before every name.
  explicit TensorNames(std::map<std::string, TensorName, std::less<>> names) : names_(std::move(names)) {}

  // Replaces a name, or adds one.
  TensorNames& set(const std::string& part, TensorName name);

  // With the numbers filled in. Throws Error for a part without a name.
  [[nodiscard]] TensorName of(std::string_view part, int64_t layer = 0, int64_t expert = 0) const;
  // All tensors of a layer begin so.
  [[nodiscard]] std::string layer_prefix(int64_t layer) const;

  std::string layer_pattern;           // "model.layers.{layer}."
  bool has_interleaved_heads = false;  // rows 2i and 2i + 1 of a q or k head are elements i and i + head_dim / 2
  std::vector<std::string> ignored;    // ends of the names of tensors that follow from the config

 private:
  std::map<std::string, TensorName, std::less<>> names_;
};

// As most families of Hugging Face spell them, and GGUF.
[[nodiscard]] TensorNames hugging_face_names();
[[nodiscard]] TensorNames gguf_names();

// How the tensors of a checkpoint are called. Throws Error for a family that is not known.
[[nodiscard]] TensorNames tensor_names_of(const Checkpoint& checkpoint);

}  // namespace regard
