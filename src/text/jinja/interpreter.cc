#include "text/jinja/interpreter.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <iterator>
#include <map>

#include "text/jinja/arithmetic.h"
#include "text/jinja/builtins.h"
#include "text/jinja/parser.h"

namespace regard::jinja {
namespace {

using Scope = std::map<std::string, Value, std::less<>>;

// Python's datetime.now().strftime(format): C's, but that a time without a zone has no text for it.
std::string time_text(std::chrono::system_clock::time_point now, const std::string& format) {
  constexpr size_t kMostBytes = 1000;
  require(format.size() <= kMostBytes, "strftime_now has a format of {} bytes, expected {} at most", format.size(),
          kMostBytes);
  const auto seconds = std::chrono::floor<std::chrono::seconds>(now);
  const std::time_t time = std::chrono::system_clock::to_time_t(seconds);
  std::tm parts{};
  localtime_r(&time, &parts);
  // The space tells an empty text from one that does not fit.
  std::string known = " ";
  for (size_t i = 0; i < format.size(); ++i) {
    const bool directive = format[i] == '%' && i + 1 < format.size();
    const char kind = directive ? format[++i] : '\0';
    if (kind == 'f')
      known += fmt::format("{:06}", std::chrono::duration_cast<std::chrono::microseconds>(now - seconds).count());
    else if (directive && kind != 'z' && kind != 'Z')
      known += {'%', kind};
    else if (!directive)
      known += format[i] == '%' ? "%%" : std::string(1, format[i]);
  }
  std::array<char, 16 * kMostBytes> text;
  const size_t size = std::strftime(text.data(), text.size(), known.c_str(), &parts);
  require(size > 0, "strftime_now comes to a text of more than {} bytes", text.size());
  return {text.data() + 1, size - 1};
}

class Interpreter {
 public:
  Interpreter(const Value::Map& variables, std::chrono::system_clock::time_point now) : now_(now) {
    Scope& ready = scopes_.emplace_back();
    for (const char* name : {"namespace", "range", "raise_exception", "strftime_now"})
      ready[name] = add({.name = name});
    scopes_.emplace_back(variables.begin(), variables.end());
  }

  std::string run(const std::vector<Statement>& statements) {
    std::string out;
    try {
      (void)execute(statements, out);
    } catch (const Error& error) {
      fail("chat template, line {}: {}", line_, error.what());
    }
    return out;
  }

 private:
  // A macro where there is a statement.
  struct Function {
    std::string name;
    const Statement* macro = nullptr;
    size_t scopes = 0;  // that it sees: those around its definition
  };

  // What comes after a statement.
  enum class Flow : uint8_t { next, break_loop, continue_loop };

  // Macros may call themselves, so what the parser bounds does not bound the stack: statements and expressions that
  // are evaluated inside of each other are counted.
  class Level {
   public:
    explicit Level(int& depth) : depth_(depth) {
      require(++depth_ <= kMostDepth, "macros, statements and expressions are more than {} deep", kMostDepth);
    }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    ~Level() { --depth_; }

   private:
    static constexpr int kMostDepth = 600;
    int& depth_;
  };

  // ---- Statements ----

  Flow execute(const std::vector<Statement>& statements, std::string& out) {
    const Level level(depth_);
    for (const Statement& statement : statements) {
      line_ = statement.line;
      budget_.spend();
      if (const Flow flow = execute(statement, out); flow != Flow::next) return flow;
    }
    return Flow::next;
  }

  Flow execute(const Statement& statement, std::string& out) {
    switch (statement.kind) {
      case Statement::Kind::text:
        write(statement.text, out);
        return Flow::next;
      case Statement::Kind::print:
        write(to_text(evaluate(*statement.expression)), out);
        return Flow::next;
      case Statement::Kind::assign:
        assign(statement);
        return Flow::next;
      case Statement::Kind::loop:
        return execute_loop(statement, out);
      case Statement::Kind::conditional:
        return execute(evaluate(*statement.expression).truthy() ? statement.body : statement.otherwise, out);
      case Statement::Kind::block:
        return execute_in_scope(statement.body, out, {});
      case Statement::Kind::macro:
        scopes_.back()[statement.text] = add({.name = statement.text, .macro = &statement, .scopes = scopes_.size()});
        return Flow::next;
      case Statement::Kind::break_loop:
        return Flow::break_loop;
      case Statement::Kind::continue_loop:
        return Flow::continue_loop;
    }
    return Flow::next;
  }

  Flow execute_in_scope(const std::vector<Statement>& statements, std::string& out, Scope scope) {
    scopes_.push_back(std::move(scope));
    const Flow flow = execute(statements, out);
    scopes_.pop_back();
    return flow;
  }

  void write(std::string_view text, std::string& out) {
    budget_.spend_bytes(text.size());
    require(out.size() + text.size() <= kMostOutputBytes, "the text gets longer than {} bytes", kMostOutputBytes);
    out += text;
  }

  void assign(const Statement& statement) {
    Value value;
    if (statement.expression) {
      value = evaluate(*statement.expression);
    } else {
      std::string text;
      (void)execute_in_scope(statement.body, text, {});
      value = Value(std::move(text));
    }
    if (statement.attribute.empty()) return bind(statement.targets, value, scopes_.back());
    const Value target = variable(statement.targets.front());
    require(target.space().has_value(), "{} gets an attribute, expected a namespace", target.describe());
    namespaces_[target.space()->index][statement.attribute] = value;
  }

  // One name for the value, or one for each element.
  void bind(const std::vector<std::string>& targets, const Value& value, Scope& scope) {
    if (targets.size() == 1) {
      scope[targets.front()] = value;
      return;
    }
    const auto items = elements(value, budget_);
    require(items.size() == targets.size(), "{} variables share {} elements", targets.size(), items.size());
    for (size_t i = 0; i < items.size(); ++i) scope[targets[i]] = items[i];
  }

  Flow execute_loop(const Statement& loop, std::string& out) {
    const Value::List items = loop_items(loop);
    if (items.empty()) return execute_in_scope(loop.otherwise, out, {});
    for (size_t i = 0; i < items.size(); ++i) {
      Scope scope;
      bind(loop.targets, items[i], scope);
      scope["loop"] = loop_variable(items, i);
      budget_.spend(scope["loop"].map()->size());
      if (execute_in_scope(loop.body, out, std::move(scope)) == Flow::break_loop) break;
    }
    return Flow::next;
  }

  // What the loop goes over: the elements for which its filter holds.
  Value::List loop_items(const Statement& loop) {
    Value::List items = elements(evaluate(*loop.expression), budget_);
    if (!loop.filter) return items;
    Value::List kept;
    for (const Value& item : items) {
      scopes_.emplace_back();
      bind(loop.targets, item, scopes_.back());
      if (evaluate(*loop.filter).truthy()) kept.push_back(item);
      scopes_.pop_back();
    }
    return kept;
  }

  static Value loop_variable(const Value::List& items, size_t i) {
    const auto index = static_cast<int64_t>(i);
    const auto count = static_cast<int64_t>(items.size());
    return Value(
        Value::Map{{"index", Value(index + 1)},
                   {"index0", Value(index)},
                   {"revindex", Value(count - index)},
                   {"revindex0", Value(count - index - 1)},
                   {"first", Value(index == 0)},
                   {"last", Value(index + 1 == count)},
                   {"length", Value(count)},
                   {"previtem", i > 0 ? items[i - 1] : Value(Value::Undefined{"loop.previtem"})},
                   {"nextitem", i + 1 < items.size() ? items[i + 1] : Value(Value::Undefined{"loop.nextitem"})}});
  }

  // ---- Expressions ----

  Value evaluate(const Expression& expression) {
    const Level level(depth_);
    budget_.spend();
    const auto part = [&](size_t i) { return evaluate(expression.parts[i]); };
    switch (expression.kind) {
      case Expression::Kind::literal:
        return expression.value;
      case Expression::Kind::variable:
        return variable(expression.name);
      case Expression::Kind::list:
        return Value(evaluate_all(expression.parts));
      case Expression::Kind::map:
        return evaluate_map(expression);
      case Expression::Kind::attribute:
        return attribute(part(0), expression.name);
      case Expression::Kind::subscript:
        return subscript(part(0), part(1));
      case Expression::Kind::slice: {
        const Value object = part(0);
        return slice(object, {.start = part(1), .stop = part(2), .step = part(3)}, budget_);
      }
      case Expression::Kind::operation:
        return evaluate_operation(expression);
      case Expression::Kind::conditional:
        return part(0).truthy() ? part(1) : part(2);
      case Expression::Kind::function:
        return call_function(expression.name, arguments(expression, 0));
      case Expression::Kind::method: {
        const Value object = part(0);
        return call_method(expression.name, object, arguments(expression, 1), budget_);
      }
      case Expression::Kind::filter: {
        const Value subject = part(0);
        return apply_filter(expression.name, subject, arguments(expression, 1), budget_);
      }
      case Expression::Kind::test: {
        const Value subject = part(0);
        return Value(apply_test(expression.name, subject, arguments(expression, 1), budget_));
      }
    }
    return {};
  }

  Value::List evaluate_all(const std::vector<Expression>& expressions) {
    Value::List values;
    values.reserve(expressions.size());
    for (const Expression& expression : expressions) values.push_back(evaluate(expression));
    return values;
  }

  Value evaluate_map(const Expression& expression) {
    Scope seen;
    Value::Map entries;
    for (size_t i = 0; i < expression.parts.size(); i += 2) {
      const Value key = evaluate(expression.parts[i]);
      require(key.text() != nullptr, "a key is {}, expected a string", key.describe());
      require(seen.emplace(*key.text(), Value()).second, "the key \"{}\" comes twice", key.text()->substr(0, 80));
      entries.emplace_back(*key.text(), evaluate(expression.parts[i + 1]));
    }
    return Value(std::move(entries));
  }

  Value evaluate_operation(const Expression& expression) {
    Value left = evaluate(expression.parts[0]);
    if (expression.parts.size() == 1) return operate(expression.op, left);
    if (expression.op == Operator::logical_and) return left.truthy() ? evaluate(expression.parts[1]) : left;
    if (expression.op == Operator::logical_or) return left.truthy() ? left : evaluate(expression.parts[1]);
    return operate(expression.op, left, evaluate(expression.parts[1]), budget_);
  }

  Value variable(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    return Value(Value::Undefined{name});
  }

  Value attribute(const Value& object, const std::string& name) {
    require(!object.is_undefined(), "{} has no \"{}\"", object.describe(), name);
    if (!object.space()) return object.entry(name);
    const Scope& space = namespaces_[object.space()->index];
    const auto found = space.find(name);
    return found == space.end() ? Value(Value::Undefined{name}) : found->second;
  }

  Value subscript(const Value& object, const Value& index) {
    return object.space() && index.text() != nullptr ? attribute(object, *index.text())
                                                     : element_at(object, index, budget_);
  }

  // ---- Functions ----

  // The values of the parts from `first` on.
  Arguments arguments(const Expression& expression, size_t first) {
    Arguments result;
    const size_t keywords_from = expression.parts.size() - expression.keywords.size();
    for (size_t i = first; i < expression.parts.size(); ++i) {
      Value value = evaluate(expression.parts[i]);
      if (i < keywords_from)
        result.positional.push_back(std::move(value));
      else
        result.named.emplace_back(expression.keywords[i - keywords_from], std::move(value));
    }
    return result;
  }

  Value add(Function function) {
    functions_.push_back(std::move(function));
    return Value(Value::Function{functions_.size() - 1});
  }

  Value call_function(const std::string& called, const Arguments& given) {
    const Value callee = variable(called);
    require(!callee.is_undefined(), "the function \"{}\" is not understood", called.substr(0, 80));
    require(callee.function().has_value(), "\"{}\" is {}, expected a function", called.substr(0, 80),
            callee.describe());
    const Function function = functions_[callee.function()->index];
    if (function.macro != nullptr) return call_macro(function, given);
    const std::string& name = function.name;
    if (name == "namespace") return make_namespace(given);
    if (name == "range") return make_range(given);
    if (name == "raise_exception") {
      require(given.positional.size() == 1, "raise_exception has {} arguments, expected a message",
              given.positional.size());
      fail("{}", to_text(given.positional.front()));
    }
    require(given.positional.size() == 1 && given.named.empty() && given.positional.front().text() != nullptr,
            "strftime_now has other arguments than a format");
    return Value(time_text(now_, *given.positional.front().text()));
  }

  // Sees what stands around its definition, not around the call.
  Value call_macro(const Function& function, const Arguments& given) {
    require(function.scopes <= scopes_.size(), "the macro \"{}\" is called outside of what it was defined in",
            function.name.substr(0, 80));
    const auto first_hidden = scopes_.begin() + static_cast<std::ptrdiff_t>(function.scopes);
    std::vector<Scope> hidden(std::make_move_iterator(first_hidden), std::make_move_iterator(scopes_.end()));
    scopes_.resize(function.scopes);
    scopes_.emplace_back();
    bind_parameters(*function.macro, given);
    std::string text;
    const int line = line_;
    (void)execute(function.macro->body, text);
    line_ = line;
    scopes_.pop_back();
    std::ranges::move(hidden, std::back_inserter(scopes_));
    return Value(std::move(text));
  }

  // Defaults may name the parameters before them.
  void bind_parameters(const Statement& macro, const Arguments& given) {
    const auto& parameters = macro.targets;
    require(given.positional.size() <= parameters.size(), "the macro \"{}\" has {} arguments, expected {} at most",
            macro.text.substr(0, 80), given.positional.size(), parameters.size());
    const size_t without_default = parameters.size() - macro.defaults.size();
    size_t named = 0;
    for (size_t i = 0; i < parameters.size(); ++i) {
      budget_.spend(1 + given.named.size());
      const auto found = std::ranges::find(given.named, parameters[i], &Value::Map::value_type::first);
      const bool is_named = found != given.named.end();
      named += is_named ? 1 : 0;
      require(!is_named || i >= given.positional.size(), "the argument \"{}\" comes twice",
              parameters[i].substr(0, 80));
      scopes_.back()[parameters[i]] = i < given.positional.size() ? given.positional[i]
                                      : is_named                  ? found->second
                                      : i >= without_default      ? evaluate(macro.defaults[i - without_default])
                                                                  : Value(Value::Undefined{parameters[i]});
    }
    require(named == given.named.size(),
            "the macro \"{}\" has an argument with a keyword that is none of its parameters", macro.text.substr(0, 80));
  }

  Value make_namespace(const Arguments& given) {
    require(given.positional.empty(), "namespace has an argument without a keyword");
    namespaces_.emplace_back(given.named.begin(), given.named.end());
    return Value(Value::Namespace{namespaces_.size() - 1});
  }

  Value make_range(const Arguments& given) {
    std::vector<int64_t> numbers;
    for (const Value& value : given.positional) {
      require(value.integer().has_value(), "range has {}, expected integers", value.describe());
      numbers.push_back(*value.integer());
    }
    require(!numbers.empty() && numbers.size() <= 3 && given.named.empty(), "range has {} arguments, expected 1 to 3",
            numbers.size() + given.named.size());
    const int64_t stop = numbers.size() == 1 ? numbers[0] : numbers[1];
    const int64_t step = numbers.size() == 3 ? numbers[2] : 1;
    require(step != 0, "the step of a range is 0");
    Value::List list;
    for (int64_t i = numbers.size() == 1 ? 0 : numbers[0]; step > 0 ? i < stop : i > stop;) {
      budget_.spend();
      list.emplace_back(i);
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return Value(std::move(list));
  }

  std::chrono::system_clock::time_point now_;
  Budget budget_;
  std::vector<Scope> scopes_;  // the first has the functions that are ready, the second the template's variables
  std::vector<Scope> namespaces_;
  std::vector<Function> functions_;
  int line_ = 1;
  int depth_ = 0;  // of what is evaluated now
};

}  // namespace

std::string render(std::string_view source, const Value::Map& variables, std::chrono::system_clock::time_point now) {
  require(source.size() <= kMostTemplateBytes, "chat template: it has {} bytes, expected at most {}", source.size(),
          kMostTemplateBytes);
  return Interpreter(variables, now).run(parse(source));
}

}  // namespace regard::jinja
