#pragma once

#include <string>
#include <string_view>

namespace regard {

// As printable(), for text that a message does not put between quotes, or that the user typed: it keeps its own quotes.
[[nodiscard]] std::string printable_with_quotes(std::string_view text);

}  // namespace regard
