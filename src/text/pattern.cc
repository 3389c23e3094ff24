#include "text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>
#include <optional>

#include "tensor/fail.h"

namespace regard {
namespace {

// Unicode's White_Space. PCRE2's own \s also takes U+180E, which tokenizers do not.
constexpr std::string_view kWhiteSpace =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";

// Replaces \s and \S, inside and outside of brackets. What Oniguruma takes for operations on classes, and PCRE2 for
// plain characters, is refused.
std::string with_unicode_space(const std::string& pattern) {
  std::string result;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\' || i + 1 == pattern.size()) {
      const std::string_view rest = std::string_view(pattern).substr(i);
      const size_t posix_end = in_class && rest.starts_with("[:") ? rest.find(":]") : rest.npos;
      if (posix_end != rest.npos) {
        result += rest.substr(0, posix_end + 2);
        i += posix_end + 1;
        continue;
      }
      require(!in_class || (c != '[' && !rest.starts_with("&&")),
              "tokenizer: the pattern \"{}\" nests or intersects classes, which is not understood", printable(pattern));
      if (c == '[') in_class = true;
      if (c == ']') in_class = false;
      result += c;
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's')
      result += in_class ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
    else if (escaped == 'S' && !in_class)
      result += fmt::format("[^{}]", kWhiteSpace);
    else
      result += {c, escaped};
  }
  return result;
}

}  // namespace

struct Pattern::Code {
  std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code{nullptr, &pcre2_code_free};
};

Pattern::Pattern(const std::string& regex) {
  const std::string portable = with_unicode_space(regex);
  int error = 0;
  size_t offset = 0;
  auto compiled = std::make_shared<Code>();
  // ^ and $ mean lines, as in the Ruby syntax. \C would match a byte of a character, and the next piece would start
  // inside of it.
  compiled->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(portable.data()), portable.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                     nullptr));
  require(compiled->code != nullptr, "tokenizer: the pattern \"{}\" is not understood", printable(regex));
  // Where there is no just-in-time compiler, matching is interpreted.
  (void)pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE);
  code_ = std::move(compiled);
}

Pattern Pattern::of_text(std::string_view text) {
  // An empty text is found nowhere.
  if (text.empty()) return Pattern("(?!)");
  std::string regex;
  // Every character that means something to a pattern is escaped.
  for (const char c : text) {
    if (static_cast<uint8_t>(c) < 0x80 && std::isalnum(static_cast<uint8_t>(c)) == 0) regex += '\\';
    regex += c;
  }
  return Pattern(regex);
}

std::vector<Pattern::Piece> Pattern::find(std::string_view text) const {
  const pcre2_code* code = code_->code.get();
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code, nullptr), &pcre2_match_data_free);
  std::vector<Piece> pieces;
  size_t at = 0;
  std::optional<size_t> last_end;
  for (size_t from = 0; from <= text.size();) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    require(found > 0, "tokenizer: splitting the text failed with PCRE2's error {}", found);
    const size_t begin = pcre2_get_ovector_pointer(match.get())[0];
    const size_t end = pcre2_get_ovector_pointer(match.get())[1];
    if (begin == end && last_end == end) {
      // The next one is looked for behind the next character.
      from = end + 1;
      while (from < text.size() && (static_cast<uint8_t>(text[from]) & 0xC0) == 0x80) ++from;
      continue;
    }
    if (begin > at) pieces.push_back({{at, begin}, false});
    pieces.push_back({{begin, end}, true});
    at = from = end;
    last_end = end;
  }
  if (at < text.size()) pieces.push_back({{at, text.size()}, false});
  return pieces;
}

std::string Pattern::replace(std::string_view text, std::string_view replacement) const {
  std::string result;
  for (const auto& [range, is_match] : find(text)) result += is_match ? replacement : range.of(text);
  return result;
}

}  // namespace regard
