#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "mpi/launched.h"

// `regard generate` on ranks of which one is killed: the others end too, soon, whatever they wait for.
namespace regard::test {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr size_t kRanks = 4;
constexpr size_t kVictim = 2;

// Words of the command of a process, one after the other with a zero behind each.
std::string command_of(const std::filesystem::path& process) {
  std::ifstream file(process / "cmdline", std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The processes of the program that work on this model.
std::vector<pid_t> ranks_on(const std::string& model) {
  std::vector<pid_t> ranks;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string command = command_of(entry.path());
    if (command.starts_with(REGARD_PROGRAM) && command.find(model) != std::string::npos)
      ranks.push_back(std::stoi(name));
  }
  return ranks;
}

std::vector<pid_t> wait_for_ranks(const std::string& model) {
  const auto start = Clock::now();
  std::vector<pid_t> ranks;
  while (ranks.size() < kRanks && Clock::now() - start < kSoon) {
    std::this_thread::sleep_for(milliseconds(20));
    ranks = ranks_on(model);
  }
  return ranks;
}

Words generate(const ModelFolder& folder, const std::string& prompt) {
  return launch_words({{"-n", std::to_string(kRanks), REGARD_PROGRAM, "generate", "-m", folder.gguf, "--tp",
                        std::to_string(kRanks), "--threads", "1", "-p", prompt, "--max-tokens", "100000"}});
}

void expect_end_of_all(ChildProcess& launcher, const std::vector<pid_t>& ranks) {
  ASSERT_EQ(ranks.size(), kRanks);
  const auto start = Clock::now();
  kill(ranks[kVictim], SIGKILL);
  const Finished result = launcher.finish();
  EXPECT_LT(Clock::now() - start, kSoon);
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.err, HasSubstr("exited on signal 9"));
  expect_all_gone(ranks, start);
}

TEST(Faults, ARankKilledInALongPrefillEndsAll) {
  const ModelFolder folder({.layers = 8, .context = 1 << 18, .has_end_token = false});
  std::string prompt;  // as long as an argument may be; it takes minutes
  while (prompt.size() < 120'000) prompt += "x ";
  ChildProcess launcher(generate(folder, prompt));
  const auto ranks = wait_for_ranks(folder.gguf);
  std::this_thread::sleep_for(milliseconds(2000));  // started, and the prompt read
  EXPECT_EQ(launcher.output(), "");
  expect_end_of_all(launcher, ranks);
}

TEST(Faults, ARankKilledInDecodeEndsAll) {
  const ModelFolder folder({.context = 1 << 18, .has_end_token = false});
  ChildProcess launcher(generate(folder, "the inn"));
  launcher.wait_for_output(50);
  expect_end_of_all(launcher, wait_for_ranks(folder.gguf));
}

TEST(Faults, ARankStoppedInDecodeEndsAllAfterTheTimeout) {
  const ModelFolder folder({.context = 1 << 18, .has_end_token = false});
  Words words = generate(folder, "the inn");
  words.insert(words.end(), {"--timeout", "2"});
  ChildProcess launcher(words);
  launcher.wait_for_output(50);
  const auto ranks = wait_for_ranks(folder.gguf);
  ASSERT_EQ(ranks.size(), kRanks);
  const auto start = Clock::now();
  kill(ranks[kVictim], SIGSTOP);
  const Finished result = launcher.finish();
  EXPECT_LT(Clock::now() - start, kSoon);
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("regard: exchange: nothing has moved for 2 s and there is no answer from rank "));
  expect_all_gone(ranks, start);
}

}  // namespace
}  // namespace regard::test
