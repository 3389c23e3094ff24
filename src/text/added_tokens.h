#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "text/normalizer.h"
#include "text/prefix_index.h"

namespace regard {

// A token that is found in the text itself, before any splitting.
struct AddedToken {
  std::string text;
  int32_t id = 0;
  bool special = true;
  bool strip_left = false;   // takes the white space before it
  bool strip_right = false;  // takes the white space behind it
  bool single_word = false;  // only where no letter or digit touches it
  bool normalized = false;   // looked for in the normalized text, as its own text normalized
};

// Finds added tokens, the leftmost and among those the longest first.
class AddedTokens {
 public:
  AddedTokens(std::vector<AddedToken> tokens, const Normalizer& normalizer);

  // A part of a text: an added token, or what lies between.
  struct Segment {
    TextRange range;
    std::optional<int32_t> token;
  };
  [[nodiscard]] std::vector<Segment> find_in_text(std::string_view text) const { return as_written_.find(text); }
  [[nodiscard]] std::vector<Segment> find_in_normalized(std::string_view text) const { return normalized_.find(text); }

  [[nodiscard]] bool is_special(int32_t token) const { return special_.contains(token); }

 private:
  // Tokens by their texts, which are what is looked for.
  class Set {
   public:
    void add(AddedToken token);
    void finish();
    [[nodiscard]] std::vector<Segment> find(std::string_view text) const;

   private:
    [[nodiscard]] const AddedToken* longest_at(std::string_view text) const;
    [[nodiscard]] bool stands_alone(std::string_view text, TextRange range) const;

    std::vector<AddedToken> tokens_;
    PrefixIndex index_;  // views into tokens_, numbers of tokens
    Pattern word_character_{R"(^[\p{L}\p{Nl}\p{Nd}\p{M}\p{Pc}\x{200C}\x{200D}])"};
  };

  Set as_written_;
  Set normalized_;
  std::unordered_set<int32_t> special_;
};

}  // namespace regard
