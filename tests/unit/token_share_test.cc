#include "parallel/token_share.h"

#include <gtest/gtest.h>

namespace regard {
namespace {

// Runs of 256 positions are dealt out in turn [PAR-52].
TEST(TokenShare, EveryPositionIsKeptByOneRankInOrder) {
  for (const int64_t ranks : {1, 2, 3, 8}) {
    std::vector<int64_t> kept(static_cast<size_t>(ranks), 0);
    for (int64_t position = 0; position < 5000; ++position) {
      int64_t owners = 0;
      for (int64_t index = 0; index < ranks; ++index) {
        const TokenShare share{.ranks = ranks, .index = index};
        ASSERT_EQ(share.count_below(position), kept[static_cast<size_t>(index)]);
        if (!share.owns(position)) continue;
        ++owners;
        ++kept[static_cast<size_t>(index)];
      }
      ASSERT_EQ(owners, 1);
    }
  }
}

}  // namespace
}  // namespace regard
