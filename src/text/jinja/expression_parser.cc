#include "text/jinja/expression_parser.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace regard::jinja {
namespace {

using TokenKind = Token::Kind;
using ExpressionKind = Expression::Kind;

struct Binary {
  std::string_view spelling;
  Operator op;
  int level;  // the higher, the tighter it binds
};

constexpr int kNotLevel = 3;
constexpr int kComparisonLevel = 4;
constexpr std::array<Binary, 16> kBinaries = {{{"or", Operator::logical_or, 1},
                                               {"and", Operator::logical_and, 2},
                                               {"==", Operator::equal, kComparisonLevel},
                                               {"!=", Operator::not_equal, kComparisonLevel},
                                               {"<", Operator::less, kComparisonLevel},
                                               {"<=", Operator::less_equal, kComparisonLevel},
                                               {">", Operator::greater, kComparisonLevel},
                                               {">=", Operator::greater_equal, kComparisonLevel},
                                               {"in", Operator::in, kComparisonLevel},
                                               {"+", Operator::add, 5},
                                               {"-", Operator::subtract, 5},
                                               {"~", Operator::concatenate, 6},
                                               {"*", Operator::multiply, 7},
                                               {"/", Operator::divide, 7},
                                               {"//", Operator::floor_divide, 7},
                                               {"%", Operator::modulo, 7}}};
constexpr Binary kNotIn{"not in", Operator::not_in, kComparisonLevel};

// Words that end an operand, and so are no variables.
constexpr std::array<std::string_view, 8> kWords = {"and", "or", "not", "in", "is", "if", "else", "elif"};

class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  Expression parse_conditional() {
    const Deeper deeper(*this);
    Expression value = parse_binary(1);
    while (tokens_.take_name("if")) {
      Expression condition = parse_binary(1);
      Expression otherwise = tokens_.take_name("else") ? parse_conditional() : literal(Value());
      value =
          combine(ExpressionKind::conditional, parts_of(std::move(condition), std::move(value), std::move(otherwise)));
    }
    return value;
  }

  Expression parse_tuple() {
    Expression first = parse_conditional();
    if (!tokens_.next_is(TokenKind::symbol, ",")) return first;
    std::vector<Expression> items = parts_of(std::move(first));
    while (tokens_.take_symbol(",")) items.push_back(parse_conditional());
    return combine(ExpressionKind::list, std::move(items));
  }

  // Operators of this level and above. Those of one level group from the left.
  Expression parse_binary(int level) {
    Expression left = level <= kNotLevel && tokens_.take_name("not") ? parse_not() : parse_unary();
    bool compared = false;
    while (const Binary* binary = next_binary()) {
      if (binary->level < level) break;
      if (binary->level == kComparisonLevel && std::exchange(compared, true))
        tokens_.fail_here("comparisons in a chain are not understood; use \"and\"");
      (void)tokens_.next();
      if (binary == &kNotIn) (void)tokens_.next();
      left = operation(binary->op, parts_of(std::move(left), parse_binary(binary->level + 1)));
    }
    return left;
  }

 private:
  // Counts how deep calls are nested, as long as it lives.
  class Deeper {
   public:
    explicit Deeper(ExpressionParser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMostDepth) parser_.tokens_.fail_here("expressions are nested too deep");
    }
    ~Deeper() { --parser_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    ExpressionParser& parser_;
  };

  // A list of initialisers would copy the trees.
  template <class... Parts>
  static std::vector<Expression> parts_of(Parts... parts) {
    std::vector<Expression> all;
    all.reserve(sizeof...(parts));
    (all.push_back(std::move(parts)), ...);
    return all;
  }

  // The tree's depth bounds recursion over it, which brackets alone do not: a + b + c + ... needs none.
  Expression combine(ExpressionKind kind, std::vector<Expression> parts, std::string name = {}) {
    int depth = 0;
    for (const Expression& part : parts) depth = std::max(depth, part.depth);
    if (depth >= kMostDepth) tokens_.fail_here("an expression has more than {} levels", kMostDepth);
    return {.kind = kind, .name = std::move(name), .parts = std::move(parts), .depth = depth + 1};
  }

  Expression operation(Operator op, std::vector<Expression> operands) {
    Expression result = combine(ExpressionKind::operation, std::move(operands));
    result.op = op;
    return result;
  }

  static Expression literal(Value value) { return {.kind = ExpressionKind::literal, .value = std::move(value)}; }

  [[nodiscard]] const Binary* next_binary() const {
    if (!tokens_.next_is(TokenKind::symbol) && !tokens_.next_is(TokenKind::name)) return nullptr;
    if (tokens_.next_is(TokenKind::name, "not") && tokens_.next_is(TokenKind::name, "in", 1)) return &kNotIn;
    const auto found = std::ranges::find(kBinaries, tokens_.peek().content, &Binary::spelling);
    return found == kBinaries.end() ? nullptr : &*found;
  }

  // Behind "not".
  Expression parse_not() {
    const Deeper deeper(*this);
    return operation(Operator::logical_not, parts_of(parse_binary(kNotLevel)));
  }

  // A sign binds tighter than a filter: -1|abs is (-1)|abs.
  Expression parse_unary() { return parse_filters(parse_signed()); }

  Expression parse_signed() {
    if (tokens_.take_symbol("-")) return parse_sign(Operator::negate);
    if (tokens_.take_symbol("+")) return parse_sign(Operator::plus);
    return parse_postfix(parse_primary());
  }

  // Behind the sign.
  Expression parse_sign(Operator op) {
    const Deeper deeper(*this);
    return operation(op, parts_of(parse_signed()));
  }

  Expression parse_primary() {
    const Token token = tokens_.peek();
    switch (token.kind) {
      case TokenKind::name:
        return parse_name();
      case TokenKind::string: {
        std::string text;
        while (tokens_.next_is(TokenKind::string)) text += tokens_.next().content;
        return literal(Value(std::move(text)));
      }
      case TokenKind::integer:
        return parse_number<int64_t>();
      case TokenKind::real:
        return parse_number<double>();
      default:
        break;
    }
    if (tokens_.take_symbol("(")) return parse_bracket();
    if (tokens_.take_symbol("[")) return combine(ExpressionKind::list, parse_items("]"));
    if (tokens_.take_symbol("{")) return parse_map();
    tokens_.fail_here("expected an expression, found {}",
                      token.content.empty() ? "the end of the tag" : fmt::format("\"{}\"", token.content));
  }

  Expression parse_name() {
    const std::string& name = tokens_.peek().content;
    if (std::ranges::find(kWords, name) != kWords.end())
      tokens_.fail_here("expected an expression, found \"{}\"", name);
    const Token token = tokens_.next();
    if (token.content == "true" || token.content == "True") return literal(Value(true));
    if (token.content == "false" || token.content == "False") return literal(Value(false));
    if (token.content == "none" || token.content == "None") return literal(Value(Value::None()));
    return combine(ExpressionKind::variable, {}, token.content);
  }

  template <class T>
  Expression parse_number() {
    const std::string& digits = tokens_.peek().content;
    T number{};
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (result.ec != std::errc()) tokens_.fail_here("the number {} is too large", digits.substr(0, 40));
    (void)tokens_.next();
    return literal(Value(number));
  }

  // Behind "(": an expression, or a tuple if there is a comma.
  Expression parse_bracket() {
    if (tokens_.take_symbol(")")) return combine(ExpressionKind::list, {});
    Expression first = parse_conditional();
    if (tokens_.take_symbol(")")) return first;
    tokens_.expect_symbol(",");
    std::vector<Expression> items = parse_items(")");
    items.insert(items.begin(), std::move(first));
    return combine(ExpressionKind::list, std::move(items));
  }

  // Expressions with commas between them, and the bracket that closes.
  std::vector<Expression> parse_items(std::string_view close) {
    std::vector<Expression> items;
    while (!tokens_.take_symbol(close)) {
      items.push_back(parse_conditional());
      if (!tokens_.next_is(TokenKind::symbol, close)) tokens_.expect_symbol(",");
    }
    return items;
  }

  Expression parse_map() {
    std::vector<Expression> parts;
    while (!tokens_.take_symbol("}")) {
      parts.push_back(parse_conditional());
      tokens_.expect_symbol(":");
      parts.push_back(parse_conditional());
      if (!tokens_.next_is(TokenKind::symbol, "}")) tokens_.expect_symbol(",");
    }
    return combine(ExpressionKind::map, std::move(parts));
  }

  // ---- What stands behind an operand ----

  Expression parse_postfix(Expression object) {
    while (true) {
      if (tokens_.take_symbol(".")) {
        object = parse_attribute(std::move(object));
      } else if (tokens_.take_symbol("[")) {
        object = parse_subscript(std::move(object));
      } else if (tokens_.take_symbol("(")) {
        object = parse_call(std::move(object));
      } else {
        return object;
      }
    }
  }

  Expression parse_attribute(Expression object) {
    if (tokens_.next_is(TokenKind::integer))
      return combine(ExpressionKind::subscript, parts_of(std::move(object), parse_number<int64_t>()));
    return combine(ExpressionKind::attribute, parts_of(std::move(object)),
                   tokens_.expect(TokenKind::name, {}, "a name behind the dot").content);
  }

  Expression parse_subscript(Expression object) {
    // The bounds of a slice; one alone is an index.
    std::vector<Expression> parts = parts_of(std::move(object));
    bool slice = false;
    do {
      const bool left_out = tokens_.next_is(TokenKind::symbol, ":") || tokens_.next_is(TokenKind::symbol, "]");
      slice = slice || tokens_.next_is(TokenKind::symbol, ":");
      parts.push_back(left_out && slice ? literal(Value(Value::None())) : parse_conditional());
      slice = slice || tokens_.next_is(TokenKind::symbol, ":");
    } while (parts.size() < 4 && tokens_.take_symbol(":"));
    tokens_.expect_symbol("]");
    while (slice && parts.size() < 4) parts.push_back(literal(Value(Value::None())));
    return combine(slice ? ExpressionKind::slice : ExpressionKind::subscript, std::move(parts));
  }

  Expression parse_call(Expression callee) {
    std::vector<Expression> parts;
    const ExpressionKind kind =
        callee.kind == ExpressionKind::attribute ? ExpressionKind::method : ExpressionKind::function;
    if (kind == ExpressionKind::method)
      parts.push_back(std::move(callee.parts.front()));
    else if (callee.kind != ExpressionKind::variable)
      tokens_.fail_here("only functions and methods can be called by their names");
    return with_arguments(kind, std::move(parts), callee.name);
  }

  // Behind "(": arguments, those with a keyword last.
  Expression with_arguments(ExpressionKind kind, std::vector<Expression> parts, std::string name) {
    std::vector<std::string> keywords;
    while (!tokens_.take_symbol(")")) {
      if (tokens_.next_is(TokenKind::name) && tokens_.next_is(TokenKind::symbol, "=", 1)) {
        keywords.push_back(tokens_.next().content);
        (void)tokens_.next();
      } else if (!keywords.empty()) {
        tokens_.fail_here("an argument without a keyword follows one with \"{}\"", keywords.back());
      }
      parts.push_back(parse_conditional());
      if (!tokens_.next_is(TokenKind::symbol, ")")) tokens_.expect_symbol(",");
    }
    Expression call = combine(kind, std::move(parts), std::move(name));
    call.keywords = std::move(keywords);
    return call;
  }

  Expression parse_filters(Expression subject) {
    while (true) {
      if (tokens_.take_symbol("|"))
        subject = parse_filter(std::move(subject));
      else if (tokens_.take_name("is"))
        subject = parse_test(std::move(subject));
      else
        return subject;
    }
  }

  Expression parse_filter(Expression subject) {
    std::vector<Expression> parts = parts_of(std::move(subject));
    std::string name = tokens_.expect(TokenKind::name, {}, "the name of a filter").content;
    if (tokens_.take_symbol("(")) return with_arguments(ExpressionKind::filter, std::move(parts), std::move(name));
    return combine(ExpressionKind::filter, std::move(parts), std::move(name));
  }

  Expression parse_test(Expression subject) {
    const bool negated = tokens_.take_name("not");
    std::vector<Expression> parts = parts_of(std::move(subject));
    std::string name = tokens_.expect(TokenKind::name, {}, "the name of a test").content;
    Expression test;
    if (tokens_.take_symbol("(")) {
      test = with_arguments(ExpressionKind::test, std::move(parts), std::move(name));
    } else {
      if (starts_test_argument()) parts.push_back(parse_postfix(parse_primary()));
      test = combine(ExpressionKind::test, std::move(parts), std::move(name));
    }
    return negated ? operation(Operator::logical_not, parts_of(std::move(test))) : test;
  }

  // Whether a test goes on with an argument that has no brackets: x is divisibleby 3.
  [[nodiscard]] bool starts_test_argument() const {
    const Token& token = tokens_.peek();
    if (token.kind == TokenKind::name) return std::ranges::find(kWords, token.content) == kWords.end();
    return token.kind == TokenKind::string || token.kind == TokenKind::integer || token.kind == TokenKind::real ||
           tokens_.next_is(TokenKind::symbol, "[") || tokens_.next_is(TokenKind::symbol, "{");
  }

  TokenStream& tokens_;
  int depth_ = 0;
};

}  // namespace

const Token& TokenStream::peek(size_t ahead) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }

Token TokenStream::next() {
  const Token& token = peek();
  ++at_;
  return token;
}

bool TokenStream::next_is(Token::Kind kind, std::string_view content, size_t ahead) const {
  const Token& token = peek(ahead);
  return token.kind == kind && (content.empty() || token.content == content);
}

bool TokenStream::take(Token::Kind kind, std::string_view content) {
  if (!next_is(kind, content)) return false;
  ++at_;
  return true;
}

Token TokenStream::expect(Token::Kind kind, std::string_view content, std::string_view what) {
  if (next_is(kind, content)) return next();
  const std::string& found = peek().content;
  fail_here("expected {}, found {}", what,
            found.empty() ? "the end of the tag" : fmt::format("\"{}\"", found.substr(0, 80)));
}

Expression parse_expression(TokenStream& tokens) { return ExpressionParser(tokens).parse_conditional(); }

Expression parse_loop_subject(TokenStream& tokens) { return ExpressionParser(tokens).parse_binary(1); }

Expression parse_tuple(TokenStream& tokens) { return ExpressionParser(tokens).parse_tuple(); }

}  // namespace regard::jinja
