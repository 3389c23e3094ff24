#include "kernels/targets.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

namespace regard::kernels {

std::string target_name() {
  const int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
  // The best target has the lowest bit.
  return hwy::TargetName(supported & -supported);
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
}

bool target_has_fma(const std::string& name) {
  return name != "SSSE3" && name != "SSE4" && name != "EMU128" && name != "SCALAR";
}

}  // namespace regard::kernels
