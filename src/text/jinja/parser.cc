#include "text/jinja/parser.h"

#include <algorithm>
#include <utility>

#include "text/jinja/expression_parser.h"

namespace regard::jinja {
namespace {

using TokenKind = Token::Kind;
using StatementKind = Statement::Kind;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(read_tokens(source)) {}

  std::vector<Statement> parse() { return parse_body({}); }

 private:
  // Statements up to {% and one of the names, or up to the template's end if there are none.
  std::vector<Statement> parse_body(const std::vector<std::string_view>& ends) {
    if (++depth_ > kMostDepth) tokens_.fail_here("statements are nested more than {} deep", kMostDepth);
    std::vector<Statement> body;
    while (true) {
      if (tokens_.next_is(TokenKind::end)) {
        if (!ends.empty()) tokens_.fail_here("the template ends, expected {{% {} %}}", ends.back());
        break;
      }
      if (tokens_.next_is(TokenKind::block_begin) && tokens_.next_is(TokenKind::name, {}, 1) &&
          std::ranges::find(ends, tokens_.peek(1).content) != ends.end()) {
        (void)tokens_.next();
        break;
      }
      body.push_back(parse_statement());
    }
    --depth_;
    return body;
  }

  Statement parse_statement() {
    const Token token = tokens_.next();
    Statement statement{.line = token.line};
    if (token.kind == TokenKind::text) {
      statement.text = token.content;
    } else if (token.kind == TokenKind::print_begin) {
      statement.kind = StatementKind::print;
      statement.expression = parse_tuple(tokens_);
      (void)tokens_.expect(TokenKind::print_end, {}, "}}");
    } else {
      parse_block(statement);
    }
    return statement;
  }

  // Behind {%.
  void parse_block(Statement& statement) {
    const std::string name = tokens_.expect(TokenKind::name, {}, "a statement").content;
    if (name == "if") return parse_if(statement);
    if (name == "for") return parse_for(statement);
    if (name == "set") return parse_set(statement);
    if (name == "macro") return parse_macro(statement);
    // Where transformers looks for the assistant's tokens; it prints nothing itself.
    if (name == "generation") return parse_generation(statement);
    if (name == "break" || name == "continue") {
      if (loops_ == 0) tokens_.fail_here("{{% {} %}} is outside of a loop", name);
      statement.kind = name == "break" ? StatementKind::break_loop : StatementKind::continue_loop;
      return expect_block_end();
    }
    tokens_.fail_here("the statement {{% {} %}} is not understood here", name.substr(0, 80));
  }

  void expect_block_end() { (void)tokens_.expect(TokenKind::block_end, {}, "%}"); }

  // Also behind {% elif, which shares its {% endif %} with the {% if.
  void parse_if(Statement& statement) {
    statement.kind = StatementKind::conditional;
    statement.expression = parse_tuple(tokens_);
    expect_block_end();
    statement.body = parse_body({"elif", "else", "endif"});
    if (tokens_.next_is(TokenKind::name, "elif")) {
      if (++depth_ > kMostDepth) tokens_.fail_here("there are more than {} elif in a row", kMostDepth);
      Statement next{.line = tokens_.next().line};
      parse_if(next);
      --depth_;
      statement.otherwise.push_back(std::move(next));
      return;
    }
    if (tokens_.take_name("else")) {
      expect_block_end();
      statement.otherwise = parse_body({"endif"});
    }
    (void)tokens_.next();
    expect_block_end();
  }

  void parse_for(Statement& statement) {
    statement.kind = StatementKind::loop;
    statement.targets = parse_targets();
    if (!tokens_.take_name("in")) tokens_.fail_here("expected \"in\" behind the variables of a loop");
    statement.expression = parse_loop_subject(tokens_);
    if (tokens_.take_name("if")) statement.filter = parse_expression(tokens_);
    expect_block_end();
    ++loops_;
    statement.body = parse_body({"else", "endfor"});
    --loops_;
    if (tokens_.take_name("else")) {
      expect_block_end();
      statement.otherwise = parse_body({"endfor"});
    }
    (void)tokens_.next();
    expect_block_end();
  }

  void parse_set(Statement& statement) {
    statement.kind = StatementKind::assign;
    statement.targets = parse_targets();
    if (statement.targets.size() == 1 && tokens_.take_symbol("."))
      statement.attribute = tokens_.expect(TokenKind::name, {}, "a name behind the dot").content;
    if (tokens_.take_symbol("=")) {
      statement.expression = parse_tuple(tokens_);
      return expect_block_end();
    }
    expect_block_end();
    statement.body = parse_enclosed("endset");
  }

  void parse_macro(Statement& statement) {
    statement.kind = StatementKind::macro;
    statement.text = tokens_.expect(TokenKind::name, {}, "the name of a macro").content;
    tokens_.expect_symbol("(");
    if (!tokens_.take_symbol(")")) {
      do {
        parse_parameter(statement);
      } while (tokens_.take_symbol(","));
      tokens_.expect_symbol(")");
    }
    expect_block_end();
    // A loop around it is none of its own.
    const int loops = std::exchange(loops_, 0);
    statement.body = parse_enclosed("endmacro");
    loops_ = loops;
  }

  void parse_parameter(Statement& macro) {
    macro.targets.push_back(tokens_.expect(TokenKind::name, {}, "the name of a parameter").content);
    if (tokens_.take_symbol("="))
      macro.defaults.push_back(parse_expression(tokens_));
    else if (!macro.defaults.empty())
      tokens_.fail_here("the parameter \"{}\" has no default, but the one before has", macro.targets.back());
  }

  void parse_generation(Statement& statement) {
    statement.kind = StatementKind::block;
    expect_block_end();
    statement.body = parse_enclosed("endgeneration");
  }

  // A body and the tag behind it.
  std::vector<Statement> parse_enclosed(std::string_view end) {
    std::vector<Statement> body = parse_body({end});
    (void)tokens_.next();
    expect_block_end();
    return body;
  }

  std::vector<std::string> parse_targets() {
    std::vector<std::string> targets;
    const bool bracket = tokens_.take_symbol("(");
    do {
      targets.push_back(tokens_.expect(TokenKind::name, {}, "the name of a variable").content);
    } while (tokens_.take_symbol(","));
    if (bracket) tokens_.expect_symbol(")");
    return targets;
  }

  TokenStream tokens_;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

std::vector<Statement> parse(std::string_view source) { return Parser(source).parse(); }

}  // namespace regard::jinja
