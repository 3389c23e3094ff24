#include "mpi/roll_call.h"

#include <fmt/ranges.h>

#include <array>
#include <exception>
#include <map>
#include <thread>

#include "mpi/check.h"
#include "tensor/fail.h"

namespace regard::mpi {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kCallTag = 1;
constexpr int kHereTag = 2;
// A rank that waits looks for calls every fraction of a millisecond, where it gets a core. Longer than `abort` waits
// for the word of a lower rank, so that a rank that calls is answered by all that have called shortly before.
constexpr std::chrono::milliseconds kAnswerTime{2000};

using HostName = std::array<char, MPI_MAX_PROCESSOR_NAME>;

// Takes a message without content, if one has come; returns its sender or -1.
int take(MPI_Comm group, int tag) {
  int found = 0;
  MPI_Status status;
  check(MPI_Iprobe(MPI_ANY_SOURCE, tag, group, &found, &status), "MPI_Iprobe");
  if (found == 0) return -1;
  check(MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, tag, group, MPI_STATUS_IGNORE), "MPI_Recv");
  return status.MPI_SOURCE;
}

}  // namespace

RollCall::RollCall() {
  check(MPI_Comm_dup(MPI_COMM_WORLD, &group_), "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(group_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Comm_rank(group_, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(group_, &size_), "MPI_Comm_size");
  HostName own{};
  int length = 0;
  check(MPI_Get_processor_name(own.data(), &length), "MPI_Get_processor_name");
  std::vector<HostName> all(static_cast<size_t>(size_));
  check(MPI_Allgather(own.data(), static_cast<int>(own.size()), MPI_BYTE, all.data(), static_cast<int>(own.size()),
                      MPI_BYTE, group_),
        "MPI_Allgather");
  for (const HostName& name : all) hosts_.emplace_back(name.data());
}

RollCall::~RollCall() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&group_);
}

// Without content, so that it leaves at once.
void RollCall::send_to(int rank, int tag) {
  MPI_Request word = MPI_REQUEST_NULL;
  // Nobody waits for a word to arrive. NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker)
  check(MPI_Isend(nullptr, 0, MPI_BYTE, rank, tag, group_, &word), "MPI_Isend");
  check(MPI_Request_free(&word), "MPI_Request_free");
}

void RollCall::answer() {
  for (int caller = take(group_, kCallTag); caller >= 0; caller = take(group_, kCallTag)) send_to(caller, kHereTag);
}

std::vector<int> RollCall::silent_ranks() {
  std::vector<bool> here(static_cast<size_t>(size_), false);
  here[static_cast<size_t>(rank_)] = true;
  for (int other = 0; other < size_; ++other)
    if (other != rank_) send_to(other, kCallTag);
  int missing = size_ - 1;
  for (const auto end = Clock::now() + kAnswerTime; missing > 0 && Clock::now() < end;) {
    answer();
    for (int other = take(group_, kHereTag); other >= 0; other = take(group_, kHereTag)) {
      here[static_cast<size_t>(other)] = true;
      --missing;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::vector<int> silent;
  for (int other = 0; other < size_; ++other)
    if (!here[static_cast<size_t>(other)]) silent.push_back(other);
  return silent;
}

std::string RollCall::with_hosts(const std::vector<int>& ranks) const {
  std::map<std::string, std::vector<int>> by_host;
  for (const int rank : ranks) by_host[hosts_[static_cast<size_t>(rank)]].push_back(rank);
  std::vector<std::string> parts;
  for (const auto& [host, those] : by_host)
    parts.push_back(
        fmt::format("{} {} on host {}", those.size() == 1 ? "rank" : "ranks", fmt::join(those, ", "), printable(host)));
  return fmt::format("{}", fmt::join(parts, ", "));
}

void RollCall::fail_after(std::chrono::milliseconds waited) {
  const auto silent = silent_ranks();
  const double seconds = std::chrono::duration<double>(waited).count();
  require(
      !silent.empty(),
      "exchange: nothing has moved for {:g} s, but all ranks answer, so they wait for different exchanges, expected "
      "the same calls on all ranks",
      seconds);
  fail(
      "exchange: nothing has moved for {:g} s and there is no answer from {}: stopped, cut off or computing, expected "
      "an exchange within the timeout",
      seconds, with_hosts(silent));
}

}  // namespace regard::mpi
