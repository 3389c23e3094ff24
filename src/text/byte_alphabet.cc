#include "text/byte_alphabet.h"

#include <unordered_map>

#include "tensor/fail.h"
#include "text/utf8.h"

namespace regard {
namespace {

// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and on, in order.
const std::unordered_map<uint32_t, char>& alphabet() {
  static const std::unordered_map<uint32_t, char> kAlphabet = [] {
    std::unordered_map<uint32_t, char> letters;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      letters[printable ? byte : next++] = static_cast<char>(byte);
    }
    return letters;
  }();
  return kAlphabet;
}

}  // namespace

std::string bytes_of_spelling(std::string_view spelling) {
  require(find_invalid_utf8(spelling) == std::string_view::npos, "tokenizer: a token is no valid UTF-8");
  std::string bytes;
  for (size_t at = 0; at < spelling.size();) {
    const uint32_t code_point = next_code_point(spelling, at);
    const auto letter = alphabet().find(code_point);
    if (letter == alphabet().end())
      append_utf8(code_point, bytes);
    else
      bytes += letter->second;
  }
  return bytes;
}

}  // namespace regard
