#pragma once

#include "regard/tensor.h"
#include "regard/threads.h"

namespace regard::kernels {

/// What the machine can do at most with all threads of a team. Figures of a busy machine are lower.
struct MachineLimits {
  double fma_gflops = 0;  ///< f32 fused multiply-adds in registers, 2 operations each
  double read_gbs = 0;    ///< Reading memory far larger than the caches, 10^9 bytes a second
};

/// Measures the limits as often as asked: what a shared machine can do changes from one second to the next, so a share
/// of the limit wants both figures from the same moment.
class MachineProbe {
 public:
  explicit MachineProbe(const Threads& threads);
  /// Some 30 ms of work.
  [[nodiscard]] MachineLimits measure();

 private:
  [[nodiscard]] double fma_gflops();
  [[nodiscard]] double read_gbs();

  const Threads& threads_;
  Buffer memory_;
};

}  // namespace regard::kernels
