#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace regard {

// Index of the first byte that is not part of valid UTF-8 (no overlong forms, no surrogates), or npos.
[[nodiscard]] size_t find_invalid_utf8(std::string_view text);

// Bytes at the end of `text` that may be the beginning of a character whose rest is still to come.
[[nodiscard]] size_t incomplete_tail(std::string_view text);

// The code point at `at`, which moves behind it; `text` is valid UTF-8.
[[nodiscard]] uint32_t next_code_point(std::string_view text, size_t& at);

// Unicode's property White_Space.
[[nodiscard]] bool is_white_space(uint32_t code_point);

// How many bytes of white space the text begins or ends with; `text` is valid UTF-8.
[[nodiscard]] size_t leading_space(std::string_view text);
[[nodiscard]] size_t trailing_space(std::string_view text);

// Where the last character of a text that is not empty begins.
[[nodiscard]] size_t last_character(std::string_view text);

void append_utf8(uint32_t code_point, std::string& text);

}  // namespace regard
