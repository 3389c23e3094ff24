#pragma once

#include <string>
#include <string_view>

namespace regard {

// The bytes that a printable spelling stands for: byte-level BPE writes each byte as one visible character. Characters
// outside that alphabet stand for themselves. Throws Error for a spelling that is no valid UTF-8.
[[nodiscard]] std::string bytes_of_spelling(std::string_view spelling);

}  // namespace regard
