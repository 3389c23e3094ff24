#include <fmt/format.h>
#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "regard/mpi.h"

namespace regard::mpi {
namespace {

using Clock = std::chrono::steady_clock;

// The word that a rank fails, to those above it. Nothing else of ours travels in MPI_COMM_WORLD.
constexpr int kFailureTag = 0x4641;
// Ranks that fail for the same reason do so at about the same time.
constexpr std::chrono::milliseconds kGrace{1500};
// The lower rank's abort has ended this one long before.
constexpr std::chrono::seconds kLongest{5};

bool can_talk() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

void tell_higher_ranks(int rank) {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  // Nobody waits for a word to arrive. NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker)
  for (int higher = rank + 1; higher < size; ++higher) {
    MPI_Request word = MPI_REQUEST_NULL;
    MPI_Isend(nullptr, 0, MPI_BYTE, higher, kFailureTag, MPI_COMM_WORLD, &word);
    MPI_Request_free(&word);
  }
}

bool lower_rank_fails_too() {
  const auto end = Clock::now() + kGrace;
  int found = 0;
  while (found == 0 && Clock::now() < end) {
    MPI_Iprobe(MPI_ANY_SOURCE, kFailureTag, MPI_COMM_WORLD, &found, MPI_STATUS_IGNORE);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return found != 0;
}

// As the launcher's variables tell, where MPI has not begun.
int launched_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"})
    if (const char* rank = std::getenv(name); rank != nullptr) return std::atoi(rank);
  return 0;
}

void print_line(int rank, std::string_view message) {
  std::string line = rank == 0 ? "" : fmt::format("rank {}: ", rank);
  line += message;
  for (char& c : line)
    if ((c >= 0 && c < ' ') || c == '\x7F') c = ' ';
  std::fflush(nullptr);
  line += '\n';
  // Not fmt::print, which throws where standard error is gone.
  (void)std::fputs(line.c_str(), stderr);
}

}  // namespace

void abort(std::string_view message, int exit_code) {
  if (!can_talk()) {
    // The launcher ends all ranks when one has failed; most likely all have, and rank 0 has said why.
    const int rank = launched_rank();
    if (rank > 0) std::this_thread::sleep_for(kGrace);
    print_line(rank, message);
    std::_Exit(exit_code);
  }
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  tell_higher_ranks(rank);
  if (rank > 0 && lower_rank_fails_too())
    std::this_thread::sleep_for(kLongest);
  else
    print_line(rank, message);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace regard::mpi
