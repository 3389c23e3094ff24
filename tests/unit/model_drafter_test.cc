#include "engine/model_drafter.h"

#include <gtest/gtest.h>

#include "support/test_model.h"

namespace regard::test {
namespace {

using Ids = std::vector<int32_t>;

constexpr KvCacheOptions kCache{.slots = 1, .capacity = 100};

// What generate says: the most likely tokens behind a text.
Ids likely(const TestModel& model, const Ids& text, int64_t count) {
  return model.text_of({.prompt = text, .max_tokens = count}).tokens;
}

// Whatever part of the last draft came true.
TEST(ModelDrafter, GuessesTheMostLikelyTokensBehindTheTextAsItCame) {
  const TestModel model({.context = 256, .has_end_token = false});
  for (size_t accepted = 0; accepted <= 4; ++accepted) {
    Workspace workspace(1);
    ModelDrafter drafter(model.decoder(), 4, 267, kCache, workspace);
    Ids text = {5, 17, 9};
    drafter.extend(text);
    const Ids first = drafter.draft(10);
    EXPECT_EQ(first, likely(model, text, 4));
    Ids more(first.begin(), first.begin() + static_cast<int64_t>(accepted));
    more.push_back(100);
    drafter.extend(more);
    drafter.judge(4, static_cast<int64_t>(accepted));
    text.insert(text.end(), more.begin(), more.end());
    const auto count = static_cast<int64_t>(std::min<size_t>(4, accepted == 4 ? 8 : accepted + 1));
    EXPECT_EQ(drafter.draft(10), likely(model, text, count)) << accepted;
  }
}

TEST(ModelDrafter, KeepsToTheRoomAndTheVocabulary) {
  const TestModel model({.context = 256, .has_end_token = false});
  Workspace workspace(1);
  ModelDrafter drafter(model.decoder(), 4, 20, kCache, workspace);
  drafter.extend(Ids{5, 17, 9});
  EXPECT_EQ(drafter.draft(2).size(), 2U);
  EXPECT_TRUE(drafter.draft(0).empty());
  for (const int32_t token : drafter.draft(4)) EXPECT_LT(token, 20);
}

// All tokens of the text run, and all of the draft but the last.
TEST(ModelDrafter, FallsSilentAtTheEndOfItsContext) {
  const TestModel model({.context = 10, .has_end_token = false});
  Workspace workspace(1);
  ModelDrafter drafter(model.decoder(), 4, 267, kCache, workspace);
  drafter.extend(Ids(8, 5));
  EXPECT_EQ(drafter.draft(4).size(), 3U);
  drafter.extend(Ids(2, 6));
  EXPECT_EQ(drafter.draft(4).size(), 1U);
  drafter.extend(Ids(1, 7));
  EXPECT_TRUE(drafter.draft(4).empty());
}

}  // namespace
}  // namespace regard::test
