#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "regard/checkpoint.h"
#include "text/added_tokens.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/vocabulary.h"

namespace regard {

// What the two kinds of files say of a tokenizer.
struct TokenizerSource {
  std::shared_ptr<const Vocabulary> vocabulary;
  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<Encoder> encoder;
  Decoder decoder;
  // What is put before and behind a text.
  std::vector<int32_t> front;
  std::vector<int32_t> back;
  std::optional<int32_t> bos;
  std::vector<int32_t> end_tokens;
};

// Throw Error for a kind of tokenizer that is not understood, with its name, and for what makes no sense.
[[nodiscard]] TokenizerSource read_gguf_tokenizer(const Checkpoint& checkpoint);
[[nodiscard]] TokenizerSource read_tokenizer_json(std::string_view json);

// How merge lists spell a merge: two tokens and a space between them. Throws Error for anything else.
[[nodiscard]] std::pair<std::string, std::string> split_merge(const std::string& merge);

}  // namespace regard
