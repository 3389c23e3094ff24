#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "regard/tokenizer.h"

namespace regard {

// The text of tokens as they come, without special ones: whole characters, up to the first stop text.
class TextStream {
 public:
  // Throws Error for a stop text that is empty.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop_texts);

  // Returns what the text grows by. Held back are the bytes of a character that is not whole yet, and what may be the
  // beginning of a stop text.
  [[nodiscard]] std::string push(int32_t token);
  // Returns what is held back.
  [[nodiscard]] std::string finish();
  // Whether a stop text has come, which ends the text before it.
  [[nodiscard]] bool stopped() const { return stopped_; }

 private:
  [[nodiscard]] size_t find_stop() const;
  [[nodiscard]] size_t held_back() const;

  const Tokenizer& tokenizer_;
  std::vector<std::string> stop_texts_;
  std::string pending_;  // decoded, but not returned
  bool begun_ = false;
  bool stopped_ = false;
};

}  // namespace regard
