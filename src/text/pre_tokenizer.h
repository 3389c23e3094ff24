#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "text/pattern.h"

namespace regard {

// Cuts text into the words that a model encodes one by one: a list of steps, each applied to the pieces of the one
// before. Some steps change the text as well.
class PreTokenizer {
 public:
  // What becomes of a match of a split's pattern.
  enum class Behavior : uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };
  // Which pieces Metaspace puts its mark before: all, the one that the whole text begins with, none. None that begins
  // with the mark gets another. (`tokenizers` tells the first by offsets in the text before normalization, and so takes
  // none where Strip removed the beginning, and all that one character was decomposed to.)
  enum class Prepend : uint8_t { always, first, never };

  // Throws Error for a pattern that is not understood. `invert` swaps matches and what lies between them.
  void add_split(const std::string& regex, Behavior behavior, bool invert = false);
  void add_split(Pattern pattern, Behavior behavior, bool invert = false);
  // Spaces become `mark`. `split`: a piece begins at each mark.
  void add_metaspace(const std::string& mark, Prepend prepend, bool split);
  // A space before each piece that does not begin with one.
  void add_prefix_space();

  // Cuts `text`, which is valid UTF-8, and returns the pieces in order: views into `text`, which steps may have
  // changed. `begins`: the text is the beginning of a whole one. Throws Error if matching runs out of its limits.
  [[nodiscard]] std::vector<std::string_view> split(std::string& text, bool begins = true) const;

 private:
  struct Pieces {
    std::string& text;
    bool begins;
    std::vector<TextRange> ranges = {};
  };
  // Each piece rewritten, with the piece's number.
  template <class Rewrite>
  static void rewrite(Pieces& pieces, Rewrite change);

  std::vector<std::function<void(Pieces&)>> steps_;
};

// The pattern that GPT-2's byte-level tokenizers split by.
extern const char* const kGpt2Pattern;

}  // namespace regard
