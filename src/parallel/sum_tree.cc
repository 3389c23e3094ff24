#include "parallel/sum_tree.h"

namespace regard {
namespace {

using Node = SumTree::Node;

void collect(const SumTree& tree, Node node, int64_t first, int64_t end, std::vector<Node>& found) {
  if (node.end <= first || node.first >= end) return;
  if (node.first >= first && node.end <= end) {
    found.push_back(node);
    return;
  }
  collect(tree, tree.left(node), first, end, found);
  collect(tree, tree.right(node), first, end, found);
}

}  // namespace

int64_t SumTree::middle(Node node) const {
  const int64_t first_group = node.first / group_;
  const int64_t last_group = (node.end - 1) / group_;
  if (first_group == last_group) return node.first + (node.end - node.first + 1) / 2;
  return (first_group + (last_group - first_group + 2) / 2) * group_;
}

std::vector<Node> SumTree::cover(int64_t first, int64_t end) const {
  std::vector<Node> found;
  if (first < end) collect(*this, root(), first, end, found);
  return found;
}

}  // namespace regard
