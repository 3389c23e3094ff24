#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace regard {

// The tokens by id. Those of byte-level BPE are bytes, all others valid UTF-8; ids that no token has are empty.
class Vocabulary {
 public:
  explicit Vocabulary(std::vector<std::string> tokens);
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  [[nodiscard]] const std::vector<std::string>& tokens() const { return tokens_; }
  [[nodiscard]] const std::string& text(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }
  // The id of a token, or -1.
  [[nodiscard]] int32_t find(std::string_view token) const;
  // Appends the tokens of the text's bytes, "<0x0A>" and the like; nothing, and false, if one of them is missing.
  [[nodiscard]] bool append_bytes(std::string_view text, std::vector<int32_t>& out) const;

 private:
  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, int32_t> ids_;  // views into tokens_
  std::array<int32_t, 256> bytes_{};                   // the token of each byte, or -1
};

// What becomes of text that is no token: the tokens of its bytes, if `bytes` and all of them exist; else the unknown
// token, one for all that follow each other where `fuse` says so; else nothing.
struct UnknownText {
  bool bytes = false;
  std::optional<int32_t> token = {};
  bool fuse = false;
};

// How a model encodes a word.
class Encoder {
 public:
  virtual ~Encoder() = default;
  virtual void encode(std::string_view word, std::vector<int32_t>& out) const = 0;
};

// The byte that a token "<0x0A>" stands for.
[[nodiscard]] std::optional<char> byte_of_token(std::string_view token);

}  // namespace regard
