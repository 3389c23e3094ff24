#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/builtins.h"

namespace regard::jinja {

// What a filter, test or method is called with. Arguments that were left out are undefined.
struct Call {
  const Value& subject;
  Value::List arguments;
  Budget& budget;

  [[nodiscard]] bool has(size_t i) const { return !arguments[i].is_undefined() && !arguments[i].is_none(); }

  [[nodiscard]] const std::string& text(size_t i) const {
    const std::string* text = arguments[i].text();
    require(text != nullptr, "argument {} is {}, expected a string", i + 1, arguments[i].describe());
    return *text;
  }

  [[nodiscard]] int64_t integer(size_t i) const {
    const auto number = arguments[i].integer();
    require(number.has_value(), "argument {} is {}, expected an integer", i + 1, arguments[i].describe());
    return *number;
  }

  // Filters take any value by its text.
  [[nodiscard]] std::string subject_text() const {
    std::string text = to_text(subject);
    budget.spend_bytes(text.size());
    return text;
  }
};

// A filter, test or method by its name. All parameters have names; the first `required` can't be left out.
struct Builtin {
  std::string_view name;
  std::vector<std::string_view> parameters;
  size_t required;
  Value (*call)(const Call& call);
};

// Calls the one of that name. Throws Error if there is none ("{owner} "{name}" is not understood"), or for arguments
// that do not fit.
[[nodiscard]] Value call_builtin(std::span<const Builtin> builtins, std::string_view owner, std::string_view name,
                                 const Value& subject, const Arguments& arguments, Budget& budget);

// What looking for `part` in `whole` may cost.
void spend_search(std::string_view whole, std::string_view part, Budget& budget);

}  // namespace regard::jinja
