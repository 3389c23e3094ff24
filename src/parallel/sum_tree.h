#pragma once

#include <cstdint>
#include <vector>

namespace regard {

// A fixed binary tree over leaves 0..leaves-1: a sum over all of them has the same bits whoever computes which node.
// Leaves come in groups (the query heads of a KV head); a node of several groups is cut between groups, in the middle,
// so that ranks with whole groups hold whole nodes.
class SumTree {
 public:
  // Leaves first..end-1.
  struct Node {
    int64_t first;
    int64_t end;

    [[nodiscard]] bool is_leaf() const { return end - first == 1; }
    friend bool operator==(const Node&, const Node&) = default;
  };

  explicit SumTree(int64_t leaves, int64_t group = 1) : leaves_(leaves), group_(group) {}

  [[nodiscard]] Node root() const { return {0, leaves_}; }
  // The children of a node of two leaves or more.
  [[nodiscard]] Node left(Node node) const { return {node.first, middle(node)}; }
  [[nodiscard]] Node right(Node node) const { return {middle(node), node.end}; }
  // The largest nodes that together are leaves first..end-1, in order.
  [[nodiscard]] std::vector<Node> cover(int64_t first, int64_t end) const;

 private:
  [[nodiscard]] int64_t middle(Node node) const;

  int64_t leaves_;
  int64_t group_;
};

}  // namespace regard
