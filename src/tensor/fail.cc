#include "tensor/fail.h"

namespace regard {

std::string printable(std::string_view text, Quotes quotes) {
  constexpr size_t kMost = 80;
  std::string result;
  for (const char c : text.substr(0, kMost))
    result += c >= ' ' && c <= '~' && (c != '"' || quotes == Quotes::kept) ? c : '?';
  return text.size() > kMost ? result + "..." : result;
}

}  // namespace regard
