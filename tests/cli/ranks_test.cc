#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "cli/child_process.h"
#include "cli/model_folder.h"

namespace regard::test {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(RanksOfACommand, OneProcessIsOneRank) {
  const ModelFolder folder;
  for (const char* command : {"generate", "score"}) {
    const std::string input = std::string(command) == "generate" ? "-p" : "-f";
    const Finished result = run_command({command, "-m", folder.gguf, input, folder.gguf, "--tp", "2", "--cp", "3"});
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, StartsWith("regard: ranks are 1, but --tp 2 times --cp 3 is 6, expected the same; "));
  }
}

TEST(RanksOfACommand, DegreesThatDoNotFitAreNamed) {
  const ModelFolder folder;
  const struct {
    std::vector<std::string> options;
    const char* message;
  } cases[] = {
      {{"--tp", "0"}, "--tp"},
      {{"--dp", "2"}, "--dp is 2, but has to divide the 1 ranks (--tp 1 times --cp 1)"},
      {{"--tp", "4", "--dp", "3"}, "--dp is 3, but has to divide the 4 ranks (--tp 4 times --cp 1)"},
      {{"--strided"}, "--strided is given and --cp is 1, expected a --cp of 2 or more"},
  };
  for (const auto& wrong : cases) {
    std::vector<std::string> words = {"generate", "-m", folder.gguf, "-p", "the"};
    words.insert(words.end(), wrong.options.begin(), wrong.options.end());
    const Finished result = run_command(words);
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_THAT(result.err, HasSubstr(wrong.message));
  }
}

// A variable of the commands' environment for as long as it lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

TEST(Copies, ThatALauncherStartsWithoutBringingThemTogetherAreRefused) {
  const ModelFolder folder;
  const struct {
    const char* count;
    const char* rank;
    const char* name;
  } launchers[] = {{"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"}, {"WORLD_SIZE", "RANK", "torchrun"}};
  const std::vector<std::string> commands[] = {{"generate", "-m", folder.gguf, "-p", "the", "-n", "1"},
                                               {"generate", "-m", folder.gguf, "-p", "the", "-n", "1", "--tp", "4"},
                                               {"verify", "-m", folder.gguf}};
  for (const auto& launcher : launchers)
    for (const auto& command : commands) {
      const Variable count(launcher.count, "4");
      const Variable rank(launcher.rank, "2");
      const Finished result = run_command(command);
      EXPECT_EQ(result.exit_code, 2);
      EXPECT_EQ(result.out, "");
      EXPECT_THAT(result.err,
                  StartsWith(std::string("regard: ") + launcher.name + " has started 4 processes (" + launcher.count +
                             " and " + launcher.rank + " are set), each of which is alone"));
    }
}

TEST(Copies, AProcessAloneIsNone) {
  const ModelFolder folder;
  const std::vector<std::string> command = {"generate", "-m", folder.gguf, "-p", "the", "-n", "1"};
  {
    const Variable count("SLURM_STEP_NUM_TASKS", "1");
    const Variable rank("SLURM_PROCID", "0");
    EXPECT_EQ(run_command(command).exit_code, 0);
  }
  // The allocation of a batch script, which starts one process.
  const Variable tasks("SLURM_NTASKS", "4");
  const Variable rank("SLURM_PROCID", "0");
  EXPECT_EQ(run_command(command).exit_code, 0);
}

// What one rank does whatever it is told about others.
TEST(RanksOfACommand, FlagsOfManyRanksChangeNothingForOne) {
  const ModelFolder folder;
  const std::vector<std::string> plain = {"generate", "-m", folder.gguf, "-p", "the inn", "-n", "8", "--threads", "1"};
  std::vector<std::string> words = plain;
  words.insert(words.end(), {"--tp", "1", "--cp", "1", "--dp", "1", "--sp", "--deterministic", "--flash-decoding"});
  const Finished result = run_command(words);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, run_command(plain).out);
}

}  // namespace
}  // namespace regard::test
