#include "text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace regard {
namespace {

using Behavior = PreTokenizer::Behavior;
using testing::ElementsAre;

std::vector<std::string> split(const std::string& pattern, Behavior behavior, std::string_view text) {
  PreTokenizer splitter;
  splitter.add_split(pattern, behavior);
  std::string buffer(text);
  const auto pieces = splitter.split(buffer);
  return {pieces.begin(), pieces.end()};
}

// The behaviours as the documentation of `tokenizers` shows them, on its own example.
TEST(PreTokenizer, MatchesGoWhereTheBehaviorSays) {
  const char* text = "the-final--countdown";
  EXPECT_THAT(split("-", Behavior::removed, text), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(split("-", Behavior::isolated, text), ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(split("-", Behavior::merged_with_previous, text), ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(split("-", Behavior::merged_with_next, text), ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(split("-", Behavior::contiguous, text), ElementsAre("the", "-", "final", "--", "countdown"));
}

// Some models group digits in threes from the right by looking ahead only. Checked against `tokenizers` 0.23.
TEST(PreTokenizer, EmptyMatchesPartTheTextWhereTheyAre) {
  const char* digits = R"((?=(\d{3})+(?!\d)))";
  for (const Behavior behavior : {Behavior::removed, Behavior::isolated, Behavior::merged_with_previous,
                                  Behavior::merged_with_next, Behavior::contiguous}) {
    EXPECT_THAT(split(digits, behavior, "a1234567"), ElementsAre("a1", "234", "567"));
    EXPECT_THAT(split("(?=[A-Z])", behavior, "AbCdé"), ElementsAre("Ab", "Cdé"));
    EXPECT_THAT(split("(?<=a)", behavior, "bab a"), ElementsAre("ba", "b a"));
  }
  // An empty match where another ends does not count.
  EXPECT_THAT(split("x*", Behavior::isolated, "xxéa"), ElementsAre("xx", "é", "a"));
}

TEST(PreTokenizer, CaretAndDollarMeanLines) {
  EXPECT_THAT(split("^a", Behavior::isolated, "aa\na"), ElementsAre("a", "a\n", "a"));
  EXPECT_THAT(split("a$", Behavior::isolated, "aa\nba"), ElementsAre("a", "a", "\nb", "a"));
}

TEST(PreTokenizer, EachSplitWorksOnThePiecesOfTheOneBefore) {
  PreTokenizer splitter;
  splitter.add_split("[0-9]", Behavior::isolated);
  splitter.add_split(kGpt2Pattern, Behavior::isolated);
  std::string text = "a  12 it's";
  EXPECT_THAT(splitter.split(text), ElementsAre("a", "  ", "1", "2", " it", "'s"));
}

}  // namespace
}  // namespace regard
