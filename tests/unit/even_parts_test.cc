#include "parallel/even_parts.h"

#include <gtest/gtest.h>

namespace regard {
namespace {

TEST(EvenParts, AreConsecutiveWholeAndEven) {
  for (int64_t count = 0; count <= 40; ++count)
    for (int64_t parts = 1; parts <= 12; ++parts) {
      int64_t end = 0;
      for (int64_t index = 0; index < parts; ++index) {
        const Part part = part_of(count, parts, index);
        EXPECT_EQ(part.begin, end);
        EXPECT_GE(part.count(), count / parts);
        EXPECT_LE(part.count(), (count + parts - 1) / parts);
        end = part.end;
      }
      EXPECT_EQ(end, count);
    }
}

TEST(EvenParts, AnMlpIsCutAtLeavesOf128Columns) {
  EXPECT_EQ(mlp_part_of(1536, 4, 1), (Part{384, 768}));
  // Twelve leaves on five ranks: 2, 2, 3, 2, 3.
  EXPECT_EQ(mlp_part_of(1536, 5, 2), (Part{512, 896}));
  // The last of three leaves has 44 columns.
  EXPECT_EQ(mlp_part_of(300, 2, 0), (Part{0, 128}));
  EXPECT_EQ(mlp_part_of(300, 2, 1), (Part{128, 300}));
  EXPECT_EQ(mlp_part_of(300, 3, 2), (Part{256, 300}));
  // One leaf, three ranks: the last one has it.
  EXPECT_EQ(mlp_part_of(64, 3, 0).count(), 0);
  EXPECT_EQ(mlp_part_of(64, 3, 1).count(), 0);
  EXPECT_EQ(mlp_part_of(64, 3, 2), (Part{0, 64}));
  EXPECT_EQ(mlp_part_of(300, 1, 0), (Part{0, 300}));
}

}  // namespace
}  // namespace regard
