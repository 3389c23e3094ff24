#pragma once

#include <string>
#include <vector>

namespace regard::kernels {

/// The instruction set that calls are dispatched to, e.g. "AVX2".
[[nodiscard]] std::string target_name();

/// For tests: the compiled targets that this machine can run, best first.
[[nodiscard]] std::vector<std::string> supported_targets();
/// For tests: dispatches to that target from now on; an empty name goes back to the best.
void force_target(const std::string& name);
/// Whether a target fuses multiply and add in one rounding, as the promise of equal bits across targets needs.
[[nodiscard]] bool target_has_fma(const std::string& name);

}  // namespace regard::kernels
