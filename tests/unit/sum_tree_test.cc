#include "parallel/sum_tree.h"

#include <gtest/gtest.h>

#include "parallel/even_parts.h"

namespace regard {
namespace {

using Node = SumTree::Node;

TEST(SumTree, IsCutInTheMiddleBetweenGroups) {
  const SumTree tree(12, 4);  // three groups of four
  EXPECT_EQ(tree.left(tree.root()), (Node{0, 8}));
  EXPECT_EQ(tree.right(tree.root()), (Node{8, 12}));
  EXPECT_EQ(tree.left({0, 8}), (Node{0, 4}));
  EXPECT_EQ(tree.left({4, 8}), (Node{4, 6}));
  EXPECT_EQ(tree.left({4, 6}), (Node{4, 5}));
}

TEST(SumTree, ARankWithWholeGroupsHoldsOneNode) {
  for (const int64_t group : {1, 4, 7, 8})
    for (const int64_t ranks : {1, 2, 4, 8}) {
      const SumTree tree(8 * group, group);
      for (int64_t rank = 0; rank < ranks; ++rank) {
        const ElementRange own = part_of(8 * group, ranks, rank);
        EXPECT_EQ(tree.cover(own.first, own.end()), (std::vector<Node>{{own.first, own.end()}}))
            << group << " " << ranks;
      }
    }
}

TEST(SumTree, ACoverIsExactAndOfLargestNodes) {
  const SumTree tree(9, 3);
  EXPECT_EQ(tree.cover(0, 5), (std::vector<Node>{{0, 3}, {3, 5}}));
  EXPECT_EQ(tree.cover(5, 9), (std::vector<Node>{{5, 6}, {6, 9}}));
  EXPECT_EQ(tree.cover(0, 6), (std::vector<Node>{{0, 6}}));
  EXPECT_TRUE(tree.cover(4, 4).empty());
  for (int64_t leaves = 1; leaves <= 20; ++leaves)
    for (int64_t first = 0; first < leaves; ++first)
      for (int64_t end = first + 1; end <= leaves; ++end) {
        int64_t next = first;
        for (const Node& node : SumTree(leaves, 3).cover(first, end)) {
          EXPECT_EQ(node.first, next);
          next = node.end;
        }
        EXPECT_EQ(next, end);
      }
}

}  // namespace
}  // namespace regard
