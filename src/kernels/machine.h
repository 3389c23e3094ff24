#pragma once

#include "regard/threads.h"

namespace regard::kernels {

/// What the machine can do at most, measured now with all threads of the team. Figures of a busy machine are lower.
struct MachineLimits {
  double fma_gflops = 0;  ///< f32 fused multiply-adds in registers, 2 operations each
  double read_gbs = 0;    ///< Reading memory far larger than the caches, 10^9 bytes a second
};
[[nodiscard]] MachineLimits measure_machine(const Threads& threads);

}  // namespace regard::kernels
