#include "text/jinja/builtin.h"

namespace regard::jinja {
namespace {

int64_t integer_of(const Value& value) {
  const auto number = value.integer();
  require(number.has_value(), "{} is tested, expected an integer", value.describe());
  return *number;
}

Value divisible(const Call& call) {
  const int64_t divisor = call.integer(0);
  require(divisor != 0, "division by zero");
  return Value(divisor == -1 || integer_of(call.subject) % divisor == 0);
}

// Booleans for all tests.
const std::vector<Builtin>& tests() {
  static const std::vector<Builtin> kTests = {
      {"defined", {}, 0, [](const Call& call) { return Value(!call.subject.is_undefined()); }},
      {"undefined", {}, 0, [](const Call& call) { return Value(call.subject.is_undefined()); }},
      // To Jinja what is undefined can be called, and fails then.
      {"callable",
       {},
       0,
       [](const Call& call) { return Value(call.subject.function().has_value() || call.subject.is_undefined()); }},
      {"none", {}, 0, [](const Call& call) { return Value(call.subject.is_none()); }},
      {"string", {}, 0, [](const Call& call) { return Value(call.subject.text() != nullptr); }},
      {"mapping", {}, 0, [](const Call& call) { return Value(call.subject.map() != nullptr); }},
      {"iterable",
       {},
       0,
       [](const Call& call) {
         const Value& value = call.subject;
         return Value(value.text() != nullptr || value.list() != nullptr || value.map() != nullptr ||
                      value.is_undefined());
       }},
      {"sequence",
       {},
       0,
       [](const Call& call) {
         const Value& value = call.subject;
         return Value(value.text() != nullptr || value.list() != nullptr || value.map() != nullptr ||
                      value.is_undefined());
       }},
      {"number", {}, 0, [](const Call& call) { return Value(call.subject.is_number()); }},
      {"integer",
       {},
       0,
       [](const Call& call) { return Value(call.subject.integer().has_value() && !call.subject.is_boolean()); }},
      {"float", {}, 0, [](const Call& call) { return Value(call.subject.is_real()); }},
      {"boolean", {}, 0, [](const Call& call) { return Value(call.subject.is_boolean()); }},
      {"true", {}, 0, [](const Call& call) { return Value(call.subject.is_boolean() && call.subject.truthy()); }},
      {"false", {}, 0, [](const Call& call) { return Value(call.subject.is_boolean() && !call.subject.truthy()); }},
      {"even", {}, 0, [](const Call& call) { return Value(integer_of(call.subject) % 2 == 0); }},
      {"odd", {}, 0, [](const Call& call) { return Value(integer_of(call.subject) % 2 != 0); }},
      {"divisibleby", {"num"}, 1, divisible},
      {"equalto",
       {"other"},
       1,
       [](const Call& call) { return Value(equal(call.subject, call.arguments[0], call.budget)); }},
      {"sameas",
       {"other"},
       1,
       [](const Call& call) {
         const Value& other = call.arguments[0];
         return Value(call.subject.is_boolean() == other.is_boolean() && equal(call.subject, other, call.budget));
       }},
      {"ne",
       {"other"},
       1,
       [](const Call& call) { return Value(!equal(call.subject, call.arguments[0], call.budget)); }},
      {"in",
       {"seq"},
       1,
       [](const Call& call) { return Value(contains(call.arguments[0], call.subject, call.budget)); }},
  };
  return kTests;
}

}  // namespace

bool apply_test(std::string_view name, const Value& subject, const Arguments& arguments, Budget& budget) {
  return call_builtin(tests(), "the test", name == "eq" ? "equalto" : name, subject, arguments, budget).truthy();
}

bool contains(const Value& whole, const Value& part, Budget& budget) {
  if (whole.map() != nullptr) {
    budget.spend(whole.map()->size());
    return part.text() != nullptr &&
           std::ranges::find(*whole.map(), *part.text(), &Value::Map::value_type::first) != whole.map()->end();
  }
  if (const auto* text = whole.text()) {
    require(part.text() != nullptr, "{} is looked for in a string, expected a string", part.describe());
    spend_search(*text, *part.text(), budget);
    return text->find(*part.text()) != std::string::npos;
  }
  return std::ranges::any_of(elements(whole, budget), [&](const Value& item) { return equal(item, part, budget); });
}

}  // namespace regard::jinja
