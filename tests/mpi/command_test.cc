#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/child_process.h"
#include "cli/model_folder.h"

// The command on ranks that mpirun (REGARD_COMMAND) starts.
namespace regard::test {
namespace {

using testing::HasSubstr;

using Words = std::vector<std::string>;

Words generate(const ModelFolder& folder, int ranks, const Words& more) {
  Words words = {"-n", std::to_string(ranks), REGARD_PROGRAM, "generate", "-m", folder.gguf, "--max-tokens", "4"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

Finished launch(const std::vector<Words>& programs, std::string_view input = {}) {
  Words words = {REGARD_LAUNCH_FLAGS};
  for (size_t i = 0; i < programs.size(); ++i) {
    if (i > 0) words.emplace_back(":");
    words.insert(words.end(), programs[i].begin(), programs[i].end());
  }
  return run_command(words, input);
}

// The launcher has words of its own.
void expect_refused(const Finished& result, const std::string& sentence) {
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("regard: " + sentence));
  const size_t first = result.err.find("regard: ");
  EXPECT_EQ(result.err.find("regard: ", first + 1), std::string::npos) << result.err;
}

TEST(RanksOfMpirun, OneRankIsTheOrdinaryCommand) {
  const ModelFolder folder;
  const Finished result = launch({generate(folder, 1, {"-p", "the inn", "--tp", "1"})});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out, "");
}

TEST(RanksOfMpirun, AreAsManyAsTheOptionsSay) {
  const ModelFolder folder;
  expect_refused(launch({generate(folder, 2, {"-p", "the", "--tp", "2", "--cp", "2"})}),
                 "ranks are 2, but --tp 2 times --cp 2 is 4, expected the same; start them with: mpirun -n 4 regard");
  expect_refused(launch({generate(folder, 2, {"-p", "the"})}), "ranks are 2, but --tp 1 times --cp 1 is 1");
}

TEST(RanksOfMpirun, WhatAllGetWrongIsSaidOnce) {
  const ModelFolder folder;
  expect_refused(launch({generate(folder, 3, {"--tp", "3", "-p", "the", "--nonsense"})}),
                 "The following argument was not expected: --nonsense");
  expect_refused(launch({generate(folder, 3, {"--tp", "3", "-p", ""})}), "");
}

TEST(RanksOfMpirun, WhatOneGetsWrongEndsAll) {
  const ModelFolder folder;
  const Finished result = launch({generate(folder, 1, {"--tp", "2", "-p", "the"}),
                                  {"-n", "1", REGARD_PROGRAM, "generate", "--tp", "2", "--max-tokens", "0"}});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("rank 1: regard: --max-tokens"));
}

TEST(RanksOfMpirun, HaveToBeToldTheSame) {
  const ModelFolder folder;
  const Words first = {"--tp", "2", "-p", "the"};
  const struct {
    Words second;
    const char* sentence;
  } cases[] = {
      {{"--cp", "2", "-p", "the"}, "--tp is \"2\" on rank 0, but \"1\" on rank 1"},
      {{"--tp", "2", "-p", "the", "--dp", "2"}, "--dp is \"1\" on rank 0, but \"2\" on rank 1"},
      {{"--tp", "2", "-p", "-"}, "--prompt is \"the\" on rank 0, but \"-\" on rank 1"},
      {{"--tp", "2", "-p", "the", "--seed", "7"}, "--seed is \"0\" on rank 0, but \"7\" on rank 1"},
  };
  for (const auto& other : cases)
    expect_refused(launch({generate(folder, 1, first), generate(folder, 1, other.second)}),
                   std::string("ranks disagree: ") + other.sentence);
}

TEST(RanksOfMpirun, HaveToHoldTheSameModel) {
  const ModelFolder folder;
  const ModelFolder other({.seed = 2});
  const Words words = {"--tp", "2", "-p", "the"};
  expect_refused(launch({generate(folder, 1, words), generate(other, 1, words)}),
                 "ranks disagree: the model's digest is ");
}

}  // namespace
}  // namespace regard::test
