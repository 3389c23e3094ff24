#include "kernels/targets.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include <algorithm>
#include <atomic>

#include "tensor/fail.h"

namespace regard::kernels {
namespace {

// Highway (1.0) asks the processor anew each time, which takes 20 microseconds inside a virtual machine. 0: not asked.
std::atomic<int64_t> best_target = 0;

// As users write it: Highway's AVX3 is what everyone else calls AVX-512.
std::string name_of(int64_t target) { return target == HWY_AVX3 ? "AVX-512" : hwy::TargetName(target); }

std::vector<std::string> names_of(int64_t targets) {
  std::vector<std::string> names;
  for (int64_t rest = targets; rest != 0; rest &= rest - 1) names.push_back(name_of(rest & -rest));
  return names;
}

std::string in_lower_case(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

}  // namespace

std::string target_name() {
  int64_t target = best_target.load(std::memory_order_relaxed);
  if (target == 0) {
    const int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
    target = supported & -supported;  // the best has the lowest bit
    best_target.store(target, std::memory_order_relaxed);
  }
  return name_of(target);
}

std::vector<std::string> compiled_targets() { return names_of(HWY_TARGETS); }

std::vector<std::string> supported_targets() { return names_of(hwy::SupportedTargets() & HWY_TARGETS); }

void force_target(const std::string& name) {
  hwy::SetSupportedTargetsForTest(0);
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0 && !name.empty(); rest &= rest - 1)
    if (name == name_of(rest & -rest)) hwy::SetSupportedTargetsForTest(rest & -rest);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  best_target = 0;
}

void choose_target(std::string_view name) {
  const auto targets = supported_targets();
  const auto chosen = std::ranges::find(targets, in_lower_case(std::string(name)), in_lower_case);
  require(chosen != targets.end(), "REGARD_TARGET is \"{}\", but this machine has {}", printable(name),
          fmt::join(targets, ", "));
  force_target(*chosen);
}

bool target_has_fma(const std::string& name) {
  return name != "SSSE3" && name != "SSE4" && name != "EMU128" && name != "SCALAR";
}

}  // namespace regard::kernels
