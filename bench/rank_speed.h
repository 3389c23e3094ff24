#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "planning/plan.h"
#include "regard/communicator.h"
#include "regard/linear.h"

namespace regard::bench {

// Measures what `regard plan` wants to know of ranks: what each can do while all others do the same. Operations and
// bytes are those of a matrix product, of many rows and of one. Collective.
class RankSpeedProbe {
 public:
  RankSpeedProbe(Communicator& world, Workspace& workspace);
  // Of the slowest rank. Takes a second a rank where ranks share cores: a core is theirs in turns, so that only means
  // over times much longer than a turn say something.
  [[nodiscard]] RankSpeed measure();

 private:
  void measure_machine(RankSpeed& speed);
  void measure_link(RankSpeed& speed);

  Communicator& world_;
  std::shared_ptr<Communicator> pair_;
  Workspace& workspace_;
  Linear linear_;
  Tensor rows_, product_;
  std::vector<std::byte> own_;
  std::vector<std::vector<std::byte>> received_;
};

// Seconds from when all ranks begin to when all are done.
template <class Call>
double seconds_of_all(Communicator& world, Call call) {
  (void)world.gather(0);
  const auto start = std::chrono::steady_clock::now();
  call();
  (void)world.gather(0);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace regard::bench
