#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "regard/checkpoint.h"
#include "text/pre_tokenizer.h"

namespace regard {

// A token that is found in the text itself, before any splitting.
struct AddedToken {
  std::string text;
  int32_t id = 0;
  bool special = true;
  bool strip_left = false;   // takes the white space before it
  bool strip_right = false;  // takes the white space behind it
  bool single_word = false;  // only where no letter or digit touches it
};

// What the two kinds of files say of a tokenizer. Tokens and merges are bytes, not their printable spelling.
struct TokenizerSource {
  std::vector<std::string> tokens;
  std::vector<std::pair<std::string, std::string>> merges;
  std::vector<AddedToken> added;
  PreTokenizer pre_tokenizer;
  bool whole_words = false;
  bool add_prefix_space = false;
  std::optional<int32_t> bos;
  bool add_bos = false;
  std::vector<int32_t> end_tokens;
};

// Throw Error for what is no byte-level BPE, or makes no sense.
[[nodiscard]] TokenizerSource read_gguf_tokenizer(const Checkpoint& checkpoint);
[[nodiscard]] TokenizerSource read_tokenizer_json(std::string_view json);

// The bytes that a printable spelling stands for: byte-level BPE writes each byte as one visible character.
// Characters outside that alphabet stand for themselves.
[[nodiscard]] std::string bytes_of_spelling(std::string_view spelling);

}  // namespace regard
