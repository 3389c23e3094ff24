#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja/budget.h"

namespace regard::jinja {

// A value as templates know it, with Python's meaning. Values never change; copies share their text and elements, so
// they cost little. Lists and maps nest at most kMostNesting deep, which bounds every recursion over them.
class Value {
 public:
  using List = std::vector<Value>;  // tuples too
  using Map = std::vector<std::pair<std::string, Value>>;
  static constexpr int kMostNesting = 100;

  // The value of a name that stands for nothing.
  struct Undefined {
    std::string name;
  };
  struct None {};
  // What namespace() makes: the one thing that can change. It lives in the interpreter, under this index.
  struct Namespace {
    size_t index;
  };
  // A macro, or a function that templates find ready: under this index in the interpreter.
  struct Function {
    size_t index;
  };

  Value() = default;  // undefined
  explicit Value(Undefined undefined) : data_(std::move(undefined)) {}
  explicit Value(None none) : data_(none) {}
  explicit Value(bool truth) : data_(truth) {}
  explicit Value(int64_t number) : data_(number) {}
  explicit Value(double number) : data_(number) {}
  explicit Value(std::string text) : data_(std::make_shared<const std::string>(std::move(text))) {}
  explicit Value(std::string_view text) : Value(std::string(text)) {}
  explicit Value(const char* text) : Value(std::string(text)) {}
  explicit Value(List items);
  explicit Value(Map entries);
  explicit Value(Namespace space) : data_(space) {}
  explicit Value(Function function) : data_(function) {}

  [[nodiscard]] bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  [[nodiscard]] bool is_none() const { return std::holds_alternative<None>(data_); }
  [[nodiscard]] bool is_boolean() const { return std::holds_alternative<bool>(data_); }
  [[nodiscard]] bool is_real() const { return std::holds_alternative<double>(data_); }
  [[nodiscard]] bool is_number() const { return is_real() || integer().has_value(); }

  // The content, or nothing if the value is of another kind. A boolean is an integer too, as in Python.
  [[nodiscard]] std::optional<int64_t> integer() const;
  [[nodiscard]] const std::string* text() const;
  [[nodiscard]] const List* list() const;
  [[nodiscard]] const Map* map() const;
  [[nodiscard]] std::optional<Namespace> space() const;
  [[nodiscard]] std::optional<Function> function() const;

  // A number as a real one; 0 if it is none.
  [[nodiscard]] double real() const;
  // The entry of a map, or an undefined value.
  [[nodiscard]] Value entry(std::string_view key) const;
  [[nodiscard]] bool truthy() const;
  // For messages: "a list", or "the undefined 'user'".
  [[nodiscard]] std::string describe() const;

 private:
  template <class T>
  struct Nested {
    T parts;
    int depth;
  };
  [[nodiscard]] int depth() const;

  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const Nested<List>>, std::shared_ptr<const Nested<Map>>, Namespace, Function>
      data_;
};

// What printing writes, Python's str(). Throws Error for lists, maps and functions.
[[nodiscard]] std::string to_text(const Value& value);
// Python's json.dumps(ensure_ascii=False). Throws Error for what JSON does not know.
[[nodiscard]] std::string to_json(const Value& value, std::optional<int64_t> indent, Budget& budget);
[[nodiscard]] bool equal(const Value& a, const Value& b, Budget& budget);
// What a loop over the value sees: elements, keys, or characters. Throws Error if there is nothing to loop over.
[[nodiscard]] Value::List elements(const Value& value, Budget& budget);
// Throws Error for what has no length.
[[nodiscard]] int64_t length(const Value& value, Budget& budget);

}  // namespace regard::jinja
