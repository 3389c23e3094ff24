#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "regard/tokenizer.h"

namespace regard::cli {

// Sees whether a text that comes token by token holds one of some texts.
class StopTexts {
 public:
  // None of the texts is empty; the tokenizer outlives the object.
  StopTexts(std::vector<std::string> texts, const Tokenizer& tokenizer);
  // Whether one of them has come with this token.
  [[nodiscard]] bool end_with(int32_t token);

 private:
  std::vector<std::string> texts_;
  const Tokenizer* tokenizer_;
  size_t longest_ = 0;
  std::string tail_;  // of the text so far: as much as may be the beginning of one of them
  bool begun_ = false;
};

// What comes before the first of the texts; all where there is none.
[[nodiscard]] std::string_view before_stop(std::string_view text, std::span<const std::string> texts);

}  // namespace regard::cli
