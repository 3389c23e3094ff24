#include "text/vocabulary.h"

#include <fmt/format.h>

namespace regard {

Vocabulary::Vocabulary(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {
  ids_.reserve(tokens_.size());
  for (size_t id = 0; id < tokens_.size(); ++id)
    if (!tokens_[id].empty()) ids_.emplace(tokens_[id], static_cast<int32_t>(id));
  for (size_t byte = 0; byte < bytes_.size(); ++byte) bytes_[byte] = find(fmt::format("<0x{:02X}>", byte));
}

int32_t Vocabulary::find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? -1 : found->second;
}

bool Vocabulary::append_bytes(std::string_view text, std::vector<int32_t>& out) const {
  const size_t before = out.size();
  for (const char c : text) {
    out.push_back(bytes_[static_cast<uint8_t>(c)]);
    if (out.back() >= 0) continue;
    out.resize(before);
    return false;
  }
  return true;
}

std::optional<char> byte_of_token(std::string_view token) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const int high = digit(token[3]);
  const int low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high << 4 | low);
}

}  // namespace regard
