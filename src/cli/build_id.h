#pragma once

#include <string>

namespace regard::cli {

// What the linker has computed of this program's code and data, as hexadecimal digits: another build of the same
// version has another one. Empty where the linker left it out.
[[nodiscard]] std::string build_id();

}  // namespace regard::cli
