#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace regard::kernels {

/// The instruction set that calls are dispatched to: "AVX-512", "AVX2", "NEON", or "EMU128" or "SCALAR" without.
[[nodiscard]] std::string target_name();

/// All that this build has code for, best first.
[[nodiscard]] std::vector<std::string> compiled_targets();
/// Those of them that this machine can run, best first.
[[nodiscard]] std::vector<std::string> supported_targets();
/// For the whole process, before its first call: dispatches to that target, upper or lower case, as the variable
/// REGARD_TARGET of the command asks. Throws Error for one that the machine does not have, naming those it has.
void choose_target(std::string_view name);
/// For tests: dispatches to that target from now on; an empty name goes back to the best.
void force_target(const std::string& name);
/// Whether a target fuses multiply and add in one rounding, as the promise of equal bits across targets needs.
[[nodiscard]] bool target_has_fma(const std::string& name);

}  // namespace regard::kernels
