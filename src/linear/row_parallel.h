#pragma once

#include <array>
#include <functional>
#include <span>
#include <vector>

#include "parallel/even_parts.h"
#include "parallel/rank_sum.h"
#include "regard/linear.h"

namespace regard {

// A linear layer whose input columns are spread over the ranks of a group: each multiplies the columns it has, and the
// products are summed over a tree [PROJ-19]. A leaf of the tree is a run of columns.
class RowParallel {
 public:
  RowParallel() = default;
  // leaves[r]: the leaves of rank r, whose columns lie one after the other, `leaf_width` each, but for the last one,
  // which may be narrower. Partial sums travel as `wire`.
  RowParallel(const std::shared_ptr<Communicator>& group, const SumTree& tree, std::span<const ElementRange> leaves,
              int64_t leaf_width, DType wire);

  [[nodiscard]] bool empty() const { return sum_.empty(); }
  [[nodiscard]] const RankSum& sum() const { return sum_.front(); }
  // A leaf's product over the own columns first..first+count-1.
  using MultiplyLeaf = std::function<void(int64_t first, int64_t count, TensorView out)>;
  // The own nodes' products, from those of their leaves: partials [nodes][shape], of `columns` own columns.
  void multiply(int64_t columns, const Shape& shape, const MultiplyLeaf& leaf, std::span<float> partials,
                Workspace& workspace) const;
  // The same for x [tokens, own columns]: partials [nodes][tokens][rows of the weight].
  void multiply(const PackedMatrix& weight, ConstTensorView x, std::span<float> partials, Workspace& workspace) const;

 private:
  void multiply_node(int64_t columns, const MultiplyLeaf& leaf, SumTree::Node node, TensorView out, int level,
                     Workspace& workspace) const;

  SumTree tree_{1};
  int64_t first_leaf_ = 0;
  int64_t leaf_width_ = 0;
  std::vector<RankSum> sum_;  // one, or none in an empty layer
};

// The rows of a call on their way through a row-parallel layer. While one piece's partial sums travel, the next piece
// is computed.
class SummedRows {
 public:
  SummedRows(const RowParallel& parallel, const Linear& linear, Workspace& workspace);
  // Of partial sums alone, without bias.
  SummedRows(const RowParallel& parallel, Workspace& workspace);

  // x [tokens, own columns] -> out [tokens, rows], the same on all ranks. What out holds is known after `finish`.
  void add(ConstTensorView x, TensorView out);
  // The same with partial sums that are there already: `fill` writes [nodes][elements of out].
  template <class Fill>
  void add_partials(Fill fill, TensorView out) {
    Piece& now = next(even_parts(out.shape().elements(), parallel_.sum().group().size()), out, true);
    fill(now.pending.partials(static_cast<int64_t>(parallel_.sum().own_nodes().size()), out.shape().elements()));
    travel(now);
  }
  // Rank r gets the rows tokens[r] only; out: this rank's.
  void scatter(ConstTensorView x, std::span<const ElementRange> tokens, TensorView out);
  // The same with partial sums of `rows` rows that are there already: `fill` writes [nodes][rows][width of out].
  template <class Fill>
  void scatter_partials(Fill fill, int64_t rows, std::span<const ElementRange> tokens, TensorView out) {
    Piece& now = next(elements_of(tokens, out.size(1)), out, false);
    fill(now.pending.partials(static_cast<int64_t>(parallel_.sum().own_nodes().size()), rows * out.size(1)));
    travel(now);
  }
  void finish();

 private:
  struct Piece {
    bool gathers = false;
    TensorView out;
    std::vector<ElementRange> parts;
    std::unique_ptr<Communicator::Transfer> gather;
    RankSum::Pending pending;
  };

  static std::vector<ElementRange> elements_of(std::span<const ElementRange> tokens, int64_t width);
  Piece& next(std::vector<ElementRange> parts, TensorView out, bool gathers);
  void multiply(Piece& piece, ConstTensorView x);
  // Starts the exchange of partial sums, and takes the pieces before it a step further.
  void travel(Piece& piece);
  void complete_sum(Piece& piece);
  static void complete(Piece& piece);
  [[nodiscard]] Piece& piece(int64_t index) { return pieces_[static_cast<size_t>(index) % pieces_.size()]; }

  const RowParallel& parallel_;
  const PackedMatrix* weight_;  // null: partial sums come from elsewhere
  std::span<const float> bias_;
  Workspace& workspace_;
  // One whose partial sums are computed, one whose sums travel, one whose results are gathered.
  std::array<Piece, 3> pieces_;
  int64_t started_ = 0;
  std::vector<float> own_;
};

}  // namespace regard
