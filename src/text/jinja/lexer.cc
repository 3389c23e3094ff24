#include "text/jinja/lexer.h"

#include <algorithm>
#include <array>

#include "tensor/fail.h"
#include "text/jinja/text.h"
#include "text/utf8.h"

namespace regard::jinja {
namespace {

using Kind = Token::Kind;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Line ends become \n, and one at the very end goes, as in Jinja.
std::string with_plain_line_ends(std::string_view source) {
  std::string result;
  result.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    result += source[i] == '\r' ? '\n' : source[i];
  }
  if (result.ends_with('\n')) result.pop_back();
  return result;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(with_plain_line_ends(source)) {}

  std::vector<Token> read() {
    while (at_ < source_.size()) read_text_and_tag();
    push(Kind::end, "");
    return std::move(tokens_);
  }

 private:
  template <class... Args>
  [[noreturn]] void fail_here(fmt::format_string<Args...> format, Args&&... args) {
    fail("chat template, line {}: {}", line_, fmt::format(format, std::forward<Args>(args)...));
  }

  [[nodiscard]] std::string_view rest() const { return std::string_view(source_).substr(at_); }
  [[nodiscard]] bool next_is(std::string_view text) const { return rest().starts_with(text); }

  void push(Kind kind, std::string content) {
    tokens_.push_back({.kind = kind, .content = std::move(content), .line = line_});
  }

  void advance(size_t bytes) {
    line_ += static_cast<int>(std::ranges::count(rest().substr(0, bytes), '\n'));
    at_ += bytes;
  }

  bool take(std::string_view text) {
    if (!next_is(text)) return false;
    advance(text.size());
    return true;
  }

  // ---- Between tags ----

  [[nodiscard]] size_t find_tag() const {
    for (size_t brace = source_.find('{', at_); brace != std::string::npos; brace = source_.find('{', brace + 1)) {
      const char next = brace + 1 < source_.size() ? source_[brace + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return brace;
    }
    return std::string::npos;
  }

  void read_text_and_tag() {
    const size_t tag = find_tag();
    if (tag == std::string::npos) {
      push(Kind::text, std::string(rest()));
      at_ = source_.size();
      return;
    }
    const char type = source_[tag + 1];
    const char mark = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const std::string_view text = rest().substr(0, tag - at_);
    if (mark == '-')
      push_text(strip(text, Side::right));
    else
      push_text(mark == '+' || type == '{' ? text : without_indent(text));
    advance(tag + (mark == '-' || mark == '+' ? 3 : 2) - at_);
    if (type == '#') return skip_comment();
    push(type == '{' ? Kind::print_begin : Kind::block_begin, "");
    read_inside(type == '{' ? "}}" : "%}", type == '{' ? Kind::print_end : Kind::block_end);
  }

  void push_text(std::string_view text) {
    if (!text.empty()) push(Kind::text, std::string(text));
  }

  // Without the white space between the start of the tag's line and the tag, if there is nothing else (lstrip_blocks).
  [[nodiscard]] std::string_view without_indent(std::string_view text) const {
    const size_t newline = text.rfind('\n');
    if (newline == std::string_view::npos && !at_line_start_) return text;
    const size_t indent = newline == std::string_view::npos ? 0 : newline + 1;
    return strip(text.substr(indent), Side::both).empty() ? text.substr(0, indent) : text;
  }

  // Takes the end of a tag, if it is here, and the white space that goes with it.
  bool take_end(std::string_view end, bool trims_newline) {
    const std::string mark = next_is("-") || next_is("+") ? std::string(rest().substr(0, 1)) : "";
    if (mark == "+" && !trims_newline) return false;
    if (!take(mark + std::string(end))) return false;
    const char last = source_[at_ - 1];
    const size_t after = at_;
    if (mark == "-") advance(rest().size() - strip(rest(), Side::left).size());
    if (mark.empty() && trims_newline) take("\n");
    at_line_start_ = (at_ > after ? source_[at_ - 1] : last) == '\n';
    return true;
  }

  void skip_comment() {
    while (!take_end("#}", true)) {
      if (at_ == source_.size()) fail_here("a comment has no end");
      advance(1);
    }
  }

  // ---- Inside a tag ----

  void read_inside(std::string_view end, Kind end_kind) {
    int brackets = 0;
    while (true) {
      while (at_ < source_.size() && is_space(source_[at_])) advance(1);
      if (at_ == source_.size()) fail_here("a tag has no end; expected {}", end);
      if (brackets == 0 && take_end(end, end == "%}")) return push(end_kind, "");
      read_token(brackets);
    }
  }

  void read_token(int& brackets) {
    const char c = source_[at_];
    if (is_name_start(c)) {
      const auto name_end =
          std::ranges::find_if_not(rest(), [](char letter) { return is_name_start(letter) || is_digit(letter); });
      push_taken(Kind::name, static_cast<size_t>(name_end - rest().begin()));
    } else if (is_digit(c)) {
      read_number();
    } else if (c == '\'' || c == '"') {
      read_string(c);
    } else {
      read_symbol();
      const std::string& symbol = tokens_.back().content;
      if (symbol == "(" || symbol == "[" || symbol == "{") ++brackets;
      if (symbol == ")" || symbol == "]" || symbol == "}") --brackets;
      if (brackets < 0) fail_here("\"{}\" closes nothing", symbol);
    }
  }

  void push_taken(Kind kind, size_t bytes) {
    push(kind, std::string(rest().substr(0, bytes)));
    advance(bytes);
  }

  [[nodiscard]] size_t digits_from(size_t offset) const {
    size_t end = offset;
    while (end < rest().size() && is_digit(rest()[end])) ++end;
    return end - offset;
  }

  void read_number() {
    size_t size = digits_from(0);
    bool real = false;
    if (rest().substr(size).starts_with('.') && digits_from(size + 1) > 0) {
      size += 1 + digits_from(size + 1);
      real = true;
    }
    const std::string_view exponent = rest().substr(size);
    if (exponent.starts_with('e') || exponent.starts_with('E')) {
      const size_t sign = exponent.size() > 1 && (exponent[1] == '-' || exponent[1] == '+') ? 1 : 0;
      if (const size_t digits = digits_from(size + 1 + sign); digits > 0) {
        size += 1 + sign + digits;
        real = true;
      }
    }
    push_taken(real ? Kind::real : Kind::integer, size);
  }

  void read_symbol() {
    static constexpr std::array<std::string_view, 25> kSymbols = {"==", "!=", "<=", ">=", "//", "**", "+", "-", "*",
                                                                  "/",  "%",  "~",  "<",  ">",  "=",  "(", ")", "[",
                                                                  "]",  "{",  "}",  "|",  ".",  ",",  ":"};
    for (const std::string_view symbol : kSymbols)
      if (next_is(symbol)) return push_taken(Kind::symbol, symbol.size());
    fail_here("\"{}\" is not understood", rest().substr(0, offset_of_character(rest(), 1)));
  }

  // ---- Strings ----

  void read_string(char quote) {
    const int line = line_;
    advance(1);
    std::string content;
    while (true) {
      if (at_ == source_.size()) fail("chat template, line {}: a string has no end", line);
      const char c = source_[at_];
      advance(1);
      if (c == quote) break;
      if (c == '\\' && at_ < source_.size())
        read_escape(content);
      else
        content += c;
    }
    tokens_.push_back({.kind = Kind::string, .content = std::move(content), .line = line});
  }

  // Python's escapes; a backslash before any other character stands for itself.
  void read_escape(std::string& content) {
    static constexpr std::string_view kLetters = "ntrabfv\\'\"";
    static constexpr std::string_view kMeanings = "\n\t\r\a\b\f\v\\'\"";
    const char c = source_[at_];
    if (const size_t simple = kLetters.find(c); simple != kLetters.npos) {
      advance(1);
      content += kMeanings[simple];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      advance(1);
      append_utf8(read_code_point(16, c == 'x' ? 2 : c == 'u' ? 4 : 8, true), content);
    } else if (c >= '0' && c <= '7') {
      append_utf8(read_code_point(8, 3, false), content);
    } else if (c == '\n') {
      advance(1);
    } else {
      content += '\\';
    }
  }

  uint32_t read_code_point(uint32_t base, size_t most_digits, bool all_digits) {
    static constexpr std::string_view kDigits = "0123456789abcdef";
    uint32_t code_point = 0;
    for (size_t i = 0; i < most_digits; ++i) {
      const char c = at_ < source_.size() ? source_[at_] : '\0';
      const size_t digit = kDigits.find(c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c);
      if (digit >= base) {
        if (all_digits) fail_here("an escape in a string has {} hexadecimal digits, expected {}", i, most_digits);
        break;
      }
      code_point = code_point * base + static_cast<uint32_t>(digit);
      advance(1);
    }
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF))
      fail_here("an escape in a string gives U+{:04X}, which is no character", code_point);
    return code_point;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> read_tokens(std::string_view source) { return Lexer(source).read(); }

}  // namespace regard::jinja
