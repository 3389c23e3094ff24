#pragma once

#include <mpi.h>

#include <chrono>
#include <string>
#include <vector>

namespace regard::mpi {

// Names the ranks that are silent when one has waited too long. A rank that waits answers a call; a rank that is
// stopped, cut off or computing does not.
class RollCall {
 public:
  // Collective over MPI_COMM_WORLD.
  RollCall();
  RollCall(const RollCall&) = delete;
  RollCall& operator=(const RollCall&) = delete;
  // Collective by MPI's rules, so neither after the end nor on the way out of a failed rank.
  ~RollCall();

  // Answers the ranks that have called.
  void answer();
  // Calls all ranks, and throws Error with the ranks that do not answer, and their hosts.
  [[noreturn]] void fail_after(std::chrono::milliseconds waited);

 private:
  void send_to(int rank, int tag);
  [[nodiscard]] std::vector<int> silent_ranks();
  [[nodiscard]] std::string with_hosts(const std::vector<int>& ranks) const;

  MPI_Comm group_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 0;
  std::vector<std::string> hosts_;  // of each rank
};

}  // namespace regard::mpi
