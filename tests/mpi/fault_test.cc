#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/utsname.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

#include "cli/child_process.h"
#include "mpi/launched.h"

// Ranks of a launcher (REGARD_COMMAND) that fail, one or all: the others end too, soon, and one line says why.
namespace regard::test {
namespace {

using testing::HasSubstr;

Words ranks(int count, const Words& words) {
  Words all = {"-n", std::to_string(count), REGARD_FAULT_PROGRAM};
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// As the launcher has told the process.
std::string rank_of(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/environ", std::ios::binary);
  for (std::string variable; std::getline(file, variable, '\0');)
    if (const std::string name = "OMPI_COMM_WORLD_RANK="; variable.starts_with(name))
      return variable.substr(name.size());
  return "unknown";
}

// The processes that the ranks have printed.
std::vector<pid_t> processes_in(const std::string& out) {
  std::istringstream numbers(out);
  std::vector<pid_t> processes;
  for (pid_t process = 0; numbers >> process;) processes.push_back(process);
  return processes;
}

TEST(Faults, AKilledRankEndsAllOthers) {
  for (const size_t victim : {0, 2}) {
    ChildProcess launcher(launch_words({ranks(4, {"loop"})}));
    while (count_of(launcher.output(), "\n") < 4) launcher.wait_for_output(launcher.output().size() + 1);
    const auto processes = processes_in(launcher.output());
    ASSERT_EQ(processes.size(), 4U);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const auto start = Clock::now();
    kill(processes[victim], SIGKILL);
    const Finished result = launcher.finish();
    EXPECT_LT(Clock::now() - start, kSoon);
    EXPECT_NE(result.exit_code, 0);
    EXPECT_THAT(result.err, HasSubstr("exited on signal 9"));
    expect_all_gone(processes, start);
  }
}

std::string host_name() {
  utsname names{};
  uname(&names);
  return names.nodename;
}

TEST(Faults, AStoppedRankEndsAllAndIsNamedWithItsHost) {
  for (const size_t victim : {0, 2}) {
    ChildProcess launcher(launch_words({ranks(4, {"loop_for", "2000"})}));
    while (count_of(launcher.output(), "\n") < 4) launcher.wait_for_output(launcher.output().size() + 1);
    const auto processes = processes_in(launcher.output());
    ASSERT_EQ(processes.size(), 4U);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const pid_t stopped = processes[victim];
    const std::string rank = rank_of(stopped);
    const auto start = Clock::now();
    kill(stopped, SIGSTOP);
    const Finished result = launcher.finish();
    EXPECT_LT(Clock::now() - start, kSoon);
    EXPECT_EQ(result.exit_code, 3);
    EXPECT_EQ(count_of(result.err, "exchange: "), 1U) << result.err;
    EXPECT_THAT(result.err, HasSubstr("exchange: nothing has moved for 2 s and there is no answer from rank " + rank +
                                      " on host " + host_name() + ": stopped, cut off or computing"));
    expect_all_gone(processes, start);
  }
}

// Those that wait for ranks that wait themselves do not blame them.
TEST(Faults, OfRanksThatWaitForEachOtherTheOneThatIsWaitedForIsNamed) {
  const Finished result = ChildProcess(launch_words({ranks(3, {"chain", "2000"})})).finish();
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("there is no answer from rank 2 on host " + host_name() + ":"));
}

TEST(Faults, RanksThatWaitForDifferentExchangesEnd) {
  const Finished result = ChildProcess(launch_words({ranks(2, {"disagree", "2000"})})).finish();
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(count_of(result.err, "exchange: "), 1U) << result.err;
  EXPECT_THAT(result.err, HasSubstr("nothing has moved for 2 s, but all ranks answer"));
}

TEST(Faults, ARankThatThrowsEndsAllOthersAndSaysWhy) {
  const auto start = Clock::now();
  const Finished result = ChildProcess(launch_words({ranks(4, {"throw_from_rank", "3"})})).finish();
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.err, "rank 3: out of luck in round 20\n");
  EXPECT_LT(Clock::now() - start, kSoon);
  expect_all_gone(processes_in(result.out), start);
}

TEST(Faults, OfManyRanksThatThrowTheLowestSpeaks) {
  for (const int lowest : {0, 1}) {
    const auto start = Clock::now();
    const Finished result =
        ChildProcess(launch_words({ranks(4, {"throw_from_rank", std::to_string(lowest)})})).finish();
    EXPECT_EQ(result.exit_code, 3);
    EXPECT_EQ(count_of(result.err, "out of luck"), 1U) << result.err;
    EXPECT_EQ(count_of(result.err, "rank 1: out of luck"), lowest == 1 ? 1U : 0U) << result.err;
    EXPECT_LT(Clock::now() - start, kSoon);
    expect_all_gone(processes_in(result.out), start);
  }
}

TEST(Faults, RanksThatWereToldDifferentThingsDoNotBegin) {
  const auto start = Clock::now();
  const Finished result = ChildProcess(launch_words({ranks(2, {"agree", "version=1", "cp_degree=2"}),
                                                     ranks(1, {"agree", "version=1", "cp_degree=4"})}))
                              .finish();
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(count_of(result.err, "ranks disagree"), 1U) << result.err;
  EXPECT_THAT(result.err,
              HasSubstr("ranks disagree: cp_degree is \"2\" on rank 0, but \"4\" on rank 2, expected the same\n"));
  EXPECT_LT(Clock::now() - start, kSoon);
}

TEST(Faults, RanksThatAgreeEndWell) {
  const Finished result = ChildProcess(launch_words({ranks(3, {"agree", "version=1"})})).finish();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
}

TEST(Faults, CtrlCAndTerminationOfTheLauncherEndAllRanks) {
  for (const int signal : {SIGINT, SIGTERM}) {
    ChildProcess launcher(launch_words({ranks(3, {"loop"})}));
    launcher.wait_for_output(6);
    const auto start = Clock::now();
    launcher.send_signal(signal);
    const Finished result = launcher.finish();
    EXPECT_NE(result.exit_code, 0);
    EXPECT_LT(Clock::now() - start, kSoon);
    expect_all_gone(processes_in(result.out), start);
  }
}

}  // namespace
}  // namespace regard::test
