#include "text/charsmap.h"

#include <optional>

#include "tensor/fail.h"
#include "text/utf8.h"

namespace regard {
namespace {

uint32_t u32_at(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[at + i])) << (8 * i);
  return value;
}

// A unit of a double array: its label, where its children are, and, behind a whole key, the value.
struct Unit {
  uint32_t bits;

  [[nodiscard]] bool has_value() const { return (bits >> 8 & 1) != 0; }
  [[nodiscard]] uint32_t value() const { return bits & 0x7FFF'FFFF; }
  [[nodiscard]] uint32_t label() const { return bits & 0x8000'00FF; }
  [[nodiscard]] uint32_t offset() const { return bits >> 10 << ((bits & 0x200) >> 6); }
};

class Charsmap {
 public:
  explicit Charsmap(std::string_view table) {
    require(table.size() >= 4, "tokenizer: precompiled_charsmap has {} bytes, expected at least 4", table.size());
    const uint32_t trie_bytes = u32_at(table, 0);
    require(trie_bytes % 4 == 0 && trie_bytes >= 4 && trie_bytes <= table.size() - 4,
            "tokenizer: precompiled_charsmap holds a trie of {} bytes in a table of {}", trie_bytes, table.size());
    for (size_t at = 4; at < 4 + size_t{trie_bytes}; at += 4) units_.push_back({u32_at(table, at)});
    replacements_ = table.substr(4 + size_t{trie_bytes});
    require(find_invalid_utf8(replacements_) == std::string::npos,
            "tokenizer: precompiled_charsmap replaces characters by what is no valid UTF-8");
  }

  [[nodiscard]] std::string normalize(std::string_view text) const {
    constexpr size_t kLongestCluster = 5;
    std::string result;
    for (const auto& [range, is_match] : clusters_.find(text)) {
      const std::string_view cluster = range.of(text);
      const auto whole = cluster.size() <= kLongestCluster ? replacement(cluster) : std::nullopt;
      if (whole) {
        result += *whole;
        continue;
      }
      for (size_t at = 0, next = 0; at < cluster.size(); at = next) {
        (void)next_code_point(cluster, next);
        const std::string_view character = cluster.substr(at, next - at);
        result += replacement(character).value_or(character);
      }
    }
    return result;
  }

 private:
  // What replaces a text; it is the shortest key that the text begins with which counts, as in the original.
  [[nodiscard]] std::optional<std::string_view> replacement(std::string_view text) const {
    size_t node = units_[0].offset();
    for (const char c : text) {
      const auto byte = static_cast<uint8_t>(c);
      if (byte == 0) return std::nullopt;
      node ^= byte;
      if (node >= units_.size() || units_[node].label() != byte) return std::nullopt;
      const Unit unit = units_[node];
      node ^= unit.offset();
      if (!unit.has_value()) continue;
      if (node >= units_.size()) return std::nullopt;
      return replacement_at(units_[node].value());
    }
    return std::nullopt;
  }

  // A value inside of a character would cut it in two.
  [[nodiscard]] std::optional<std::string_view> replacement_at(size_t begin) const {
    if (begin >= replacements_.size() || (static_cast<uint8_t>(replacements_[begin]) & 0xC0) == 0x80)
      return std::nullopt;
    const std::string_view rest = std::string_view(replacements_).substr(begin);
    return rest.substr(0, rest.find('\0'));
  }

  std::vector<Unit> units_;
  std::string replacements_;
  Pattern clusters_{"\\X"};
};

}  // namespace

Normalizer::Step normalizers::charsmap(std::string_view table) {
  return [map = Charsmap(table)](const std::string& text) { return map.normalize(text); };
}

std::string bytes_of_base64(std::string_view text) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    require(digit != kDigits.npos, "tokenizer: precompiled_charsmap is no base64");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xFF);
  }
  return bytes;
}

}  // namespace regard
