#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tensor/fail.h"
#include "tensor/printable_quotes.h"

namespace regard {

// How a message shows a JSON value. What is nested is only named: dump() recurses, and untrusted values nest deep.
[[nodiscard]] inline std::string shown(const nlohmann::json& value) {
  return value.is_structured() ? std::string("an ") + value.type_name() : printable_with_quotes(value.dump());
}

}  // namespace regard
