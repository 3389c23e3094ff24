#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

// The filters, tests and methods that templates find ready.
namespace regard::jinja {

struct Arguments {
  Value::List positional;
  Value::Map named;
};

// Each throws Error for a name that is not known, and for arguments that do not fit.
[[nodiscard]] Value apply_filter(std::string_view name, const Value& subject, const Arguments& arguments,
                                 Budget& budget);
[[nodiscard]] bool apply_test(std::string_view name, const Value& subject, const Arguments& arguments, Budget& budget);
[[nodiscard]] Value call_method(std::string_view name, const Value& subject, const Arguments& arguments,
                                Budget& budget);

// The `in` of Python: whether a list holds an item, a dict a key, a text a part.
[[nodiscard]] bool contains(const Value& whole, const Value& part, Budget& budget);

}  // namespace regard::jinja
