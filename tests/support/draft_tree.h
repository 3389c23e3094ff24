#pragma once

#include <rapidcheck.h>

#include <vector>

#include "regard/tensor.h"

namespace regard::test {

// Drafted tokens that branch: token i continues token parents[i], or the text where that is -1.
struct DraftTree {
  std::vector<int64_t> parents;

  [[nodiscard]] int64_t count() const { return static_cast<int64_t>(parents.size()); }
  [[nodiscard]] std::vector<int64_t> branch(int64_t token) const {
    std::vector<int64_t> path;
    for (; token >= 0; token = parents[static_cast<size_t>(token)]) path.insert(path.begin(), token);
    return path;
  }
  // As active_masks want it.
  [[nodiscard]] Tensor mask() const {
    Tensor mask(DType::boolean, {count(), count()});
    for (int64_t row = 0; row < count(); ++row)
      for (const int64_t column : branch(row)) *mask.view()[row][column].as<bool>() = true;
    return mask;
  }
};

inline DraftTree any_draft_tree(int64_t count) {
  DraftTree tree;
  for (int64_t i = 0; i < count; ++i) tree.parents.push_back(*rc::gen::inRange<int64_t>(-1, i));
  return tree;
}

}  // namespace regard::test
