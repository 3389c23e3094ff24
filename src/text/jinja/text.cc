#include "text/jinja/text.h"

#include <algorithm>

#include "text/utf8.h"

namespace regard::jinja {
namespace {

bool starts_character(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; }

size_t end_of_character(std::string_view text, size_t at) {
  ++at;
  while (at < text.size() && !starts_character(text[at])) ++at;
  return at;
}

size_t start_of_last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && !starts_character(text[at])) --at;
  return at;
}

bool is_python_space(uint32_t code_point) {
  return is_white_space(code_point) || (code_point >= 0x1C && code_point <= 0x1F);
}

bool is_white_space_character(std::string_view character) {
  size_t at = 0;
  return is_python_space(next_code_point(character, at));
}

template <class Stripped>
std::string_view strip_while(std::string_view text, Side side, const Stripped& stripped) {
  while (side != Side::right && !text.empty()) {
    const size_t end = end_of_character(text, 0);
    if (!stripped(text.substr(0, end))) break;
    text.remove_prefix(end);
  }
  while (side != Side::left && !text.empty()) {
    const size_t start = start_of_last_character(text);
    if (!stripped(text.substr(start))) break;
    text = text.substr(0, start);
  }
  return text;
}

char upper_letter(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }
char lower_letter(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string transformed(std::string_view text, char (*letter)(char)) {
  std::string result(text);
  std::ranges::transform(result, result.begin(), letter);
  return result;
}

}  // namespace

size_t count_characters(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(text, starts_character));
}

size_t offset_of_character(std::string_view text, size_t n) {
  size_t at = 0;
  for (; n > 0 && at < text.size(); --n) at = end_of_character(text, at);
  return at;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> all;
  for (size_t at = 0; at < text.size();) {
    const size_t end = end_of_character(text, at);
    all.push_back(text.substr(at, end - at));
    at = end;
  }
  return all;
}

std::string_view strip(std::string_view text, Side side) { return strip_while(text, side, is_white_space_character); }

std::string_view strip(std::string_view text, Side side, std::string_view set) {
  // Between valid texts, a whole character is found only where one starts.
  return strip_while(text, side, [&](std::string_view character) { return set.find(character) != set.npos; });
}

std::vector<std::string_view> split(std::string_view text, int64_t most) {
  std::vector<std::string_view> parts;
  for (text = strip(text, Side::left); !text.empty(); text = strip(text, Side::left)) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.push_back(text);
      break;
    }
    size_t end = 0;
    size_t next = 0;
    while (end < text.size() && !is_python_space(next_code_point(text, next))) end = next;
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return parts;
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator, int64_t most) {
  std::vector<std::string_view> parts;
  size_t found = 0;
  while ((most < 0 || static_cast<int64_t>(parts.size()) < most) && (found = text.find(separator)) != text.npos) {
    parts.push_back(text.substr(0, found));
    text.remove_prefix(found + separator.size());
  }
  parts.push_back(text);
  return parts;
}

std::string upper(std::string_view text) { return transformed(text, upper_letter); }
std::string lower(std::string_view text) { return transformed(text, lower_letter); }

std::string capitalize(std::string_view text) {
  std::string result = lower(text);
  if (!result.empty()) result.front() = upper_letter(result.front());
  return result;
}

std::string title(std::string_view text) {
  std::string result;
  bool starts = true;
  for (const std::string_view character : characters(text)) {
    result += starts ? upper(character) : lower(character);
    starts = is_white_space_character(character) || std::string_view("-({[<").find(character) != character.npos;
  }
  return result;
}

}  // namespace regard::jinja
