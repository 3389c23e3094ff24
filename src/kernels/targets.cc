#include "kernels/targets.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include <atomic>

namespace regard::kernels {
namespace {

// Highway (1.0) asks the processor anew each time, which takes 20 microseconds inside a virtual machine. 0: not asked.
std::atomic<int64_t> best_target = 0;

}  // namespace

std::string target_name() {
  int64_t target = best_target.load(std::memory_order_relaxed);
  if (target == 0) {
    const int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
    target = supported & -supported;  // the best has the lowest bit
    best_target.store(target, std::memory_order_relaxed);
  }
  return hwy::TargetName(target);
}

std::vector<std::string> supported_targets() {
  std::vector<std::string> names;
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1)
    names.emplace_back(hwy::TargetName(rest & -rest));
  return names;
}

void force_target(const std::string& name) {
  hwy::SetSupportedTargetsForTest(0);
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0 && !name.empty(); rest &= rest - 1)
    if (name == hwy::TargetName(rest & -rest)) hwy::SetSupportedTargetsForTest(rest & -rest);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  best_target = 0;
}

bool target_has_fma(const std::string& name) {
  return name != "SSSE3" && name != "SSE4" && name != "EMU128" && name != "SCALAR";
}

}  // namespace regard::kernels
