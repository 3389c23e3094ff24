#include "layers/step_plan.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "regard/position.h"
#include "support/numbers.h"

namespace regard {
namespace {

// A long step's angles are made 8192 tokens at a time, from the token on that is asked for.
TEST(StepPlan, AnglesOfLongStepsAreThoseOfEachTokensPosition) {
  constexpr int64_t kTokens = 20'000;
  const RotaryEmbedding rotary({.rotary_dim = 8, .rope_theta = 10000});
  const RotaryEmbedding other({.rotary_dim = 4, .rope_theta = 500});
  const std::vector<Span> spans = {{.slot = 0, .first_position = 100, .count = 9000},
                                   {.slot = 1, .first_position = 7, .count = kTokens - 9000}};
  std::vector<int64_t> positions(kTokens);
  std::iota(positions.begin(), positions.begin() + 9000, 100);
  std::iota(positions.begin() + 9000, positions.end(), 7);
  Workspace workspace(2);
  StepPlan plan({.tokens = kTokens, .spans = spans}, workspace);
  struct Asked {
    int64_t first, count;
  };
  // In order as layers ask, over the ends of what is held, back again, and more at once than is held.
  const std::vector<Asked> all = {{0, 512},  {512, 512}, {7680, 512},  {8000, 512},      {8512, 488}, {9000, 512},
                                  {8191, 2}, {8192, 1},  {16383, 3},   {kTokens - 1, 1}, {0, 1},      {3, 8192},
                                  {0, 8193}, {5, 12000}, {11000, 512}, {0, kTokens}};
  for (const Asked& asked : all)
    for (const RotaryEmbedding* rotation : {&rotary, &other}) {
      SCOPED_TRACE(testing::Message() << asked.first << " + " << asked.count);
      const RowAngles angles = plan.angles(*rotation, asked.first, asked.count);
      const auto expected = rotation->angles(
          std::span(positions).subspan(static_cast<size_t>(asked.first), static_cast<size_t>(asked.count)));
      ASSERT_EQ(test::floats_of(angles.cos), test::floats_of(expected.cos.values));
      ASSERT_EQ(test::floats_of(angles.sin), test::floats_of(expected.sin.values));
    }
}

}  // namespace
}  // namespace regard
