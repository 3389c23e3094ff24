#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "regard/attention_config.h"
#include "regard/dtype.h"

namespace regard {

class Checkpoint;

/// The elementwise function between the matrices of an MLP.
enum class Activation : uint8_t {
  silu,          ///< x / (1 + exp(-x))
  gelu,          ///< x * Phi(x), with Phi by the error function
  gelu_tanh,     ///< gelu with Phi approximated by tanh
  relu,          ///< max(x, 0)
  clamped_silu,  ///< (min(u, limit, >= -limit) + 1) * g / (1 + exp(-alpha * g)) with g = min(gate, limit) (gpt-oss)
};

/// One MLP: down(f(gate(x)) * up(x)), or without a gate down(f(up(x))).
struct DenseMlp {
  int64_t width = 0;  ///< Rows of gate and up, columns of down.
  Activation activation = Activation::silu;
  bool gated = true;
  bool has_bias = false;  ///< All of its matrices have one.
  double alpha = 1.702;   ///< clamped_silu
  double limit = 7.0;     ///< clamped_silu

  /// Weights of its matrices, for hidden states of that width.
  [[nodiscard]] int64_t weights(int64_t hidden_size) const { return hidden_size * width * (gated ? 3 : 2); }

  friend bool operator==(const DenseMlp&, const DenseMlp&) = default;
};

/// How a router turns its logits into the weights of the chosen experts.
enum class RouterScores : uint8_t {
  softmax_then_top_k,  ///< Softmax over all experts, of which the largest are taken (Mixtral, Qwen-MoE).
  top_k_then_softmax,  ///< Softmax over the logits of the chosen experts alone (gpt-oss).
  sigmoid,             ///< Each expert's own sigmoid (DeepSeek-V3, Llama 4).
};

/// Which experts a token passes, and with which weights. Equal scores choose the expert of lower index.
struct RouterSpec {
  RouterScores scores = RouterScores::softmax_then_top_k;
  bool normalized = true;           ///< The chosen weights are divided by their sum.
  double scale = 1.0;               ///< Multiplies the weights at last.
  bool has_bias = false;            ///< Added to the logits.
  bool has_selection_bias = false;  ///< Added to the scores for the choice alone (DeepSeek-V3).
  int64_t groups = 1;               ///< Experts form so many groups of consecutive ones;
  int64_t groups_per_token = 1;     ///< a token chooses among the experts of so many groups.
  int64_t group_scored_by = 1;      ///< A group's score is the sum of its so many largest scores.

  friend bool operator==(const RouterSpec&, const RouterSpec&) = default;
};

/// MLPs of which each token passes a few.
struct ExpertsMlp {
  int64_t experts = 0;
  int64_t experts_per_token = 0;
  DenseMlp expert;
  RouterSpec router;
  std::optional<DenseMlp> shared;  ///< An MLP beside them that every token passes.
  bool has_shared_gate = false;    ///< The shared MLP's output times sigmoid(x g), with a vector g (Qwen2-MoE).

  friend bool operator==(const ExpertsMlp&, const ExpertsMlp&) = default;
};

/// A norm over the width of the residual stream.
struct NormSpec {
  NormKind kind = NormKind::rms;
  double eps = 1e-6;
  bool has_bias = false;  ///< layer_norm

  friend bool operator==(const NormSpec&, const NormSpec&) = default;
};

/// One layer of a model:
///     a = post_attention_norm(attention(attention_norm(x)));  x = x + residual_scale * a
///     m = post_mlp_norm(mlp(mlp_norm(x)));                    x = x + residual_scale * m
/// A norm that is not there changes nothing. Parallel layers compute both branches from the x that comes in, and share
/// attention_norm where there is no mlp_norm.
struct LayerSpec {
  AttentionConfig attention;
  std::variant<DenseMlp, ExpertsMlp> mlp;
  std::optional<NormSpec> attention_norm, post_attention_norm, mlp_norm, post_mlp_norm;
  bool parallel = false;
  double residual_scale = 1.0;

  friend bool operator==(const LayerSpec&, const LayerSpec&) = default;
};

/// Token ids -> rows of the residual stream.
struct EmbeddingSpec {
  double scale = 1.0;  ///< Multiplies the rows (Gemma, Granite).
};

/// Rows of the residual stream -> logits.
struct HeadSpec {
  bool tied = false;      ///< The matrix is that of the embedding.
  double scale = 1.0;     ///< Multiplies the logits.
  double soft_cap = 0.0;  ///< 0: off; otherwise logits become cap * tanh(logit / cap).
};

/// Bytes that one weight takes in a checkpoint, on average.
struct WeightBytes {
  double attention = 2;
  double mlp = 2;
  double embedding = 2;
};

/// The one description of a model: what a family makes of `config.json` or GGUF metadata, and what everything else
/// follows from: the model that runs, what a rank loads, shards, plans, `regard inspect`.
struct ModelSpec {
  std::string family;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t context_length = 0;  ///< Positions that the model was made for.
  EmbeddingSpec embedding;
  std::vector<LayerSpec> layers;
  NormSpec final_norm;
  HeadSpec head;
  WeightBytes bytes_per_weight;

  /// From the text of a Hugging Face config.json; `name` is what messages call it. Throws Error for a family that is
  /// not known (and lists those that are), for a key that is missing or makes no sense, and for one that may change
  /// what is computed and that the family does not understand.
  [[nodiscard]] static ModelSpec from_config_json(std::string_view text, const std::string& name);
  /// From a checkpoint: config.json, or GGUF metadata and the names of the tensors. Throws Error as above.
  [[nodiscard]] static ModelSpec from(const Checkpoint& checkpoint);

  /// The same model for sequences of up to `length` tokens: LongRoPE takes its short factors where that is no more than
  /// the length of the training, its long ones beyond, for all tokens alike. Throws Error for a length below 1.
  [[nodiscard]] ModelSpec with_context_length(int64_t length) const;

  /// Equal layers, wherever they stand, by first appearance.
  struct EqualLayers {
    const LayerSpec* layer = nullptr;  ///< The first of them.
    int64_t count = 0;
  };
  [[nodiscard]] std::vector<EqualLayers> equal_layers() const;
  /// Bytes of all matrices as the checkpoint stores them.
  [[nodiscard]] double weight_bytes() const;
};

}  // namespace regard
