#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace regard {

// Byte-pair encoding of single words. Tokens are byte strings.
class BytePairEncoder {
 public:
  // Tokens by id; merges in order of rank, each two tokens that become one. Throws Error for merges of unknown tokens.
  // `whole_words`: a word that is a token is never merged from parts (ignore_merges).
  BytePairEncoder(std::vector<std::string> tokens, const std::vector<std::pair<std::string, std::string>>& merges,
                  bool whole_words);

  void encode(std::string_view word, std::vector<int32_t>& out) const;
  [[nodiscard]] const std::vector<std::string>& tokens() const { return tokens_; }
  // The id of a token, or -1.
  [[nodiscard]] int32_t find(std::string_view token) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t token;
  };
  [[nodiscard]] const Merge* find_merge(int32_t left, int32_t right) const;

  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, int32_t> ids_;  // views into tokens_
  std::array<int32_t, 256> bytes_{};                   // the token of each byte, or -1
  std::unordered_map<uint64_t, Merge> merges_;
  bool whole_words_;
};

}  // namespace regard
