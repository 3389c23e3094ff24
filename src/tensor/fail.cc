#include "tensor/fail.h"

#include "tensor/printable_quotes.h"

namespace regard {

std::string printable_with_quotes(std::string_view text) {
  constexpr size_t kMost = 80;
  std::string result;
  for (const char c : text.substr(0, kMost)) result += c >= ' ' && c <= '~' ? c : '?';
  return text.size() > kMost ? result + "..." : result;
}

std::string printable(std::string_view text) {
  std::string result = printable_with_quotes(text);
  for (char& c : result)
    if (c == '"') c = '?';
  return result;
}

}  // namespace regard
