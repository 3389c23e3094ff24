#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace regard {

// A part of a text: bytes begin..end-1.
struct TextRange {
  size_t begin = 0;
  size_t end = 0;

  [[nodiscard]] size_t size() const { return end - begin; }
  [[nodiscard]] std::string_view of(std::string_view text) const { return text.substr(begin, end - begin); }
};

// A regular expression as tokenizer files mean it: Oniguruma's Ruby syntax, matched by PCRE2.
class Pattern {
 public:
  // Throws Error for a pattern that PCRE2 does not compile, or would read in another way.
  explicit Pattern(const std::string& regex);
  // Matches exactly this text.
  [[nodiscard]] static Pattern of_text(std::string_view text);

  // Matches and the gaps between them, in order; together they are the text. A match may be empty and then only parts
  // its neighbours, as (?=[A-Z]) does; an empty match where another match ends does not count.
  struct Piece {
    TextRange range;
    bool is_match;
  };
  // `text` is valid UTF-8. Throws Error if matching runs out of PCRE2's limits.
  [[nodiscard]] std::vector<Piece> find(std::string_view text) const;
  // The text with each match replaced.
  [[nodiscard]] std::string replace(std::string_view text, std::string_view replacement) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace regard
