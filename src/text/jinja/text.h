#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// Python's string functions on UTF-8: lengths and indices count characters, not bytes. Text is valid UTF-8.
namespace regard::jinja {

[[nodiscard]] size_t count_characters(std::string_view text);
// Where the n-th character starts; the text's size if there are not so many.
[[nodiscard]] size_t offset_of_character(std::string_view text, size_t n);
[[nodiscard]] std::vector<std::string_view> characters(std::string_view text);

enum class Side : uint8_t { left, right, both };
// Without white space at the ends, or without any of `set` if that is given. To Python, the separators U+001C to
// U+001F are white space too.
[[nodiscard]] std::string_view strip(std::string_view text, Side side);
[[nodiscard]] std::string_view strip(std::string_view text, Side side, std::string_view set);

// Parts between runs of white space, or between separators; at most `most` cuts, all if that is negative.
[[nodiscard]] std::vector<std::string_view> split(std::string_view text, int64_t most);
[[nodiscard]] std::vector<std::string_view> split(std::string_view text, std::string_view separator, int64_t most);

// These change ASCII letters only.
[[nodiscard]] std::string upper(std::string_view text);
[[nodiscard]] std::string lower(std::string_view text);
[[nodiscard]] std::string capitalize(std::string_view text);
// The first letter of each word large, the rest small. Words are parted by white space, hyphens and opening brackets.
[[nodiscard]] std::string title(std::string_view text);

}  // namespace regard::jinja
