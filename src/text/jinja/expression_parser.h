#pragma once

#include "tensor/fail.h"
#include "text/jinja/lexer.h"
#include "text/jinja/syntax.h"

namespace regard::jinja {

// Reads tokens one after the other.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // The next token; what comes behind the last one is like it.
  [[nodiscard]] const Token& peek(size_t ahead = 0) const;
  Token next();
  [[nodiscard]] bool next_is(Token::Kind kind, std::string_view content = {}, size_t ahead = 0) const;
  // Takes the next token if it is the one.
  bool take(Token::Kind kind, std::string_view content = {});
  bool take_symbol(std::string_view symbol) { return take(Token::Kind::symbol, symbol); }
  bool take_name(std::string_view name) { return take(Token::Kind::name, name); }
  // Throws Error unless the next token is the one.
  Token expect(Token::Kind kind, std::string_view content, std::string_view what);
  void expect_symbol(std::string_view symbol) { (void)expect(Token::Kind::symbol, symbol, symbol); }

  template <class... Args>
  [[noreturn]] void fail_here(fmt::format_string<Args...> format, Args&&... args) const {
    fail("chat template, line {}: {}", peek().line, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
};

// Nesting of statements, and of expressions. Real templates stay below 20.
constexpr int kMostDepth = 100;

[[nodiscard]] Expression parse_expression(TokenStream& tokens);
// Without `a if b else c` outside of brackets: the "if" belongs to the loop.
[[nodiscard]] Expression parse_loop_subject(TokenStream& tokens);
// One expression, or a list of several with commas between them.
[[nodiscard]] Expression parse_tuple(TokenStream& tokens);

}  // namespace regard::jinja
