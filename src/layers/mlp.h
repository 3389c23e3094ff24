#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "layers/row_split.h"
#include "regard/linear.h"
#include "regard/model_spec.h"
#include "regard/parallel.h"
#include "regard/workspace.h"

namespace regard {

// The matrices of a DenseMlp as the checkpoint stores them: gate and up [width, hidden], down [hidden, width], and
// biases of as many numbers as their matrix has stored rows; empty: none. Without a gate, `gate` is empty.
struct DenseWeights {
  StoredMatrix gate, up, down;
  std::vector<float> gate_bias, up_bias, down_bias;
  // The stored row that is row r of gate or up, for checkpoints that keep both in one matrix: [width]; empty: as
  // stored.
  std::vector<int64_t> gate_rows, up_rows;
};

// The matrices of an ExpertsMlp as the checkpoint stores them.
struct ExpertsWeights {
  std::vector<DenseWeights> experts;
  StoredMatrix router;                // [experts, hidden]
  std::vector<float> router_bias;     // [experts], or empty
  std::vector<float> selection_bias;  // [experts], or empty
  DenseWeights shared;                // empty where the spec has none
  std::vector<float> shared_gate;     // [hidden], or empty
};

using MlpWeights = std::variant<DenseWeights, ExpertsWeights>;

// One layer's MLP, of one rank: each matrix's inner width is shared out between ranks in leaves of kMlpLeaf columns
// (mlp_part_of), and partial sums of the last matrix travel.
class Mlp {
 public:
  // Weights are those of the whole layer, or, in a checkpoint that was cut for ranks, this rank's rows of gate and up
  // and columns of down. Throws Error where weights and spec disagree, or a matrix can't be packed.
  [[nodiscard]] static Mlp load(const std::variant<DenseMlp, ExpertsMlp>& spec, const MlpWeights& weights,
                                int64_t hidden_size, const Threads& threads, const Ranks& ranks);
  Mlp(Mlp&&) noexcept;
  Mlp& operator=(Mlp&&) noexcept;
  ~Mlp();

  // Rows pass in pieces, so that the wide activations do not grow with the length of a prompt. Each is summed over
  // ranks by itself.
  static constexpr int64_t kPieceTokens = 512;
  // x and out [rows, hidden], f32, dense: the rows that this rank has, of those that `split` shares out. Collective
  // over ranks.
  void run(ConstTensorView x, const RowSplit& split, TensorView out, Workspace& workspace) const;

  // Bytes of this rank's packed weights.
  [[nodiscard]] int64_t bytes() const;
  // Numbers of this rank's weights that one token is multiplied by.
  [[nodiscard]] int64_t weights_per_token() const;
  // Bytes of this rank's weights that a call of so many tokens reads at most.
  [[nodiscard]] double bytes_read(int64_t tokens) const;

 private:
  class Dense;
  class Experts;
  struct Parts;
  explicit Mlp(std::unique_ptr<Parts> parts);

  std::unique_ptr<Parts> parts_;
};

}  // namespace regard
