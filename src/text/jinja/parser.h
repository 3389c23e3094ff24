#pragma once

#include <string_view>
#include <vector>

#include "text/jinja/syntax.h"

namespace regard::jinja {

// Throws Error with the line for what is not understood, and for what is nested very deep.
[[nodiscard]] std::vector<Statement> parse(std::string_view source);

}  // namespace regard::jinja
