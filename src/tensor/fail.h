#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "regard/error.h"
#include "regard/tensor.h"

namespace regard {

/// Throws Error with a formatted sentence: the one way errors are made.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Throws unless `condition`; the sentence is only formatted when it is needed.
template <class... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]]
    fail(format, std::forward<Args>(args)...);
}

/// Text that somebody else wrote, made short and printable for a message.
[[nodiscard]] std::string printable(std::string_view text);

}  // namespace regard

/// Shapes print as "[2, 3]".
template <>
struct fmt::formatter<regard::Shape> : fmt::formatter<std::string> {
  auto format(const regard::Shape& shape, fmt::format_context& context) const {
    return fmt::formatter<std::string>::format(shape.to_string(), context);
  }
};
