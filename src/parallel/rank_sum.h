#pragma once

#include <memory>
#include <span>
#include <vector>

#include "parallel/even_parts.h"
#include "parallel/sum_tree.h"
#include "regard/communicator.h"
#include "regard/dtype.h"
#include "regard/tensor.h"
#include "regard/threads.h"

namespace regard {

// Sums over the ranks of a group: each rank has the sums of some nodes of a tree, and each gets one part of the whole
// sum (a reduce-scatter as an exchange and an ordered addition, so that the bits depend on the tree alone).
class RankSum {
 public:
  // nodes[r]: what rank r of the group has, in order; together they cover the tree. Partial sums travel as `wire`: f32
  // or bf16.
  RankSum(std::shared_ptr<Communicator> group, const SumTree& tree, std::vector<std::vector<SumTree::Node>> nodes,
          DType wire);

  // What a rank sends of `elements` numbers of the sums of so many nodes.
  [[nodiscard]] static int64_t bytes_of(int64_t nodes, int64_t elements, DType wire) {
    return nodes * elements * static_cast<int64_t>(size_of(wire));
  }

  [[nodiscard]] Communicator& group() const { return *group_; }
  [[nodiscard]] const std::vector<SumTree::Node>& own_nodes() const {
    return nodes_[static_cast<size_t>(group_->rank())];
  }

  // One sum under way, with its memory.
  class Pending {
   public:
    // The memory for the own nodes' sums of `elements` numbers each, one node after the other.
    [[nodiscard]] std::span<float> partials(int64_t nodes, int64_t elements);

   private:
    friend class RankSum;
    Buffer partials_, sent_, received_;
    int64_t elements_ = 0;
    int64_t own_count_ = 0;
    std::unique_ptr<Communicator::Transfer> transfer_;
  };

  // Starts the exchange: rank r is to get the sum of elements parts[r].
  void start(Pending& pending, std::span<const ElementRange> parts) const;
  // Waits, and writes the sum of this rank's part.
  void finish(Pending& pending, std::span<float> out, const Threads& threads) const;

 private:
  void compile(const SumTree& tree, SumTree::Node node);
  void evaluate(const std::byte* received, int64_t own_count, ElementRange run, float* out) const;

  std::shared_ptr<Communicator> group_;
  std::vector<std::vector<SumTree::Node>> nodes_;
  std::vector<SumTree::Node> given_;  // of all ranks, in order
  // The tree as postfix: an index into given_, or kAdd for the sum of the last two.
  static constexpr int64_t kAdd = -1;
  std::vector<int64_t> program_;
  int64_t depth_ = 0;  // most intermediate results at a time
  DType wire_;
};

}  // namespace regard
