#include "engine/prompt_lookup.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/random.h"

namespace regard {
namespace {

using Ids = std::vector<int32_t>;

Ids draft_of(const Ids& text, int64_t longest, int64_t room = 100) {
  PromptLookup lookup(longest);
  lookup.extend(text);
  return lookup.draft(room);
}

TEST(PromptLookup, DraftsWhatFollowedTheLastTokensBefore) {
  EXPECT_EQ(draft_of({1, 2, 3, 4, 5, 6, 1, 2, 3}, 2), (Ids{4, 5}));
  EXPECT_EQ(draft_of({1, 2, 3, 4, 5, 6, 1, 2, 3}, 8), (Ids{4, 5, 6, 1, 2, 3})) << "the text ends";
  EXPECT_EQ(draft_of({1, 2, 3, 4, 5, 6, 1, 2, 3}, 8, 1), (Ids{4})) << "the room ends";
  EXPECT_EQ(draft_of({1, 2, 3, 4, 5, 6, 1, 2, 3}, 8, 0), Ids{});
  EXPECT_EQ(draft_of({7, 7, 7}, 4), (Ids{7}));
}

TEST(PromptLookup, ThreeTokensCountForMoreThanTwoAndTheLastPlaceForMoreThanTheFirst) {
  EXPECT_EQ(draft_of({1, 2, 3, 10, 2, 3, 20, 1, 2, 3}, 1), (Ids{10}));
  EXPECT_EQ(draft_of({1, 2, 3, 10, 1, 2, 3, 20, 1, 2, 3}, 1), (Ids{20}));
  EXPECT_EQ(draft_of({2, 3, 10, 2, 3, 20, 1, 2, 3}, 1), (Ids{20}));
}

TEST(PromptLookup, ATextWithoutAnEarlierPlaceHasNoDraft) {
  EXPECT_EQ(draft_of({}, 4), Ids{});
  EXPECT_EQ(draft_of({1}, 4), Ids{});
  EXPECT_EQ(draft_of({1, 2}, 4), Ids{});
  EXPECT_EQ(draft_of({1, 1}, 4), Ids{}) << "one token is too little";
  EXPECT_EQ(draft_of({1, 2, 3, 2, 1, 3}, 4), Ids{});
  EXPECT_EQ(draft_of({1, 2, 3, 4, 1, 2, 3}, 0), Ids{});
}

TEST(PromptLookup, DraftsAreAsLongAsTheyComeTrue) {
  PromptLookup lookup(8);
  lookup.extend(Ids{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2});
  const auto length_after = [&](int64_t drafted, int64_t accepted) {
    lookup.judge(drafted, accepted);
    return lookup.draft(100).size();
  };
  EXPECT_EQ(lookup.draft(100).size(), 8U);
  EXPECT_EQ(length_after(8, 2), 3U);
  EXPECT_EQ(length_after(3, 0), 1U);
  EXPECT_EQ(length_after(0, 0), 1U) << "no draft tells nothing";
  EXPECT_EQ(length_after(1, 1), 2U);
  EXPECT_EQ(length_after(2, 2), 4U);
  EXPECT_EQ(length_after(4, 4), 8U);
  EXPECT_EQ(length_after(8, 8), 8U);
}

// The index against a search of the whole text.
TEST(PromptLookup, FindsWhatASearchOfTheTextFinds) {
  test::Random random(91);
  Ids text;
  PromptLookup lookup(4);
  const auto search = [&](int64_t length) -> Ids {
    const auto count = static_cast<int64_t>(text.size());
    for (int64_t place = count - length - 1; place >= 0; --place)
      if (std::equal(text.end() - length, text.end(), text.begin() + place))
        return {text.begin() + place + length, text.begin() + std::min(count, place + length + 4)};
    return {};
  };
  for (int i = 0; i < 400; ++i) {
    text.push_back(static_cast<int32_t>(random.integer(0, 4)) * 400'000);
    lookup.extend({&text.back(), 1});
    const Ids three = search(3);
    ASSERT_EQ(lookup.draft(4), three.empty() ? search(2) : three) << i;
  }
}

}  // namespace
}  // namespace regard
