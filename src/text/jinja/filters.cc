#include <charconv>
#include <cmath>

#include "text/jinja/builtin.h"
#include "text/jinja/text.h"

namespace regard::jinja {
namespace {

// ---- Text ----

template <Side side>
Value stripped(const Call& call) {
  const std::string text = call.subject_text();
  if (!call.has(0)) return Value(strip(text, side));
  spend_search(text, call.text(0), call.budget);
  return Value(strip(text, side, call.text(0)));
}

template <std::string (*transform)(std::string_view)>
Value transformed(const Call& call) {
  return Value(transform(call.subject_text()));
}

Value::List texts(std::span<const std::string_view> parts, Budget& budget) {
  budget.spend(parts.size());
  Value::List values;
  for (const std::string_view part : parts) values.emplace_back(part);
  return values;
}

// The parts between separators.
std::vector<std::string_view> parts_of(std::string_view text, std::string_view separator, int64_t most,
                                       Budget& budget) {
  require(!separator.empty(), "the text to look for is empty");
  spend_search(text, separator, budget);
  // A part may be as short as a byte, and takes 16 in the list.
  budget.spend(text.size() / 4);
  return split(text, separator, most);
}

Value split_text(const Call& call) {
  const std::string text = call.subject_text();
  const int64_t most = call.has(1) ? call.integer(1) : -1;
  if (call.has(0)) return Value(texts(parts_of(text, call.text(0), most, call.budget), call.budget));
  call.budget.spend(text.size() / 4);
  return Value(texts(split(text, most), call.budget));
}

Value replaced(const Call& call) {
  const std::string text = call.subject_text();
  const std::string to = to_text(call.arguments[1]);
  const auto parts = parts_of(text, to_text(call.arguments[0]), call.has(2) ? call.integer(2) : -1, call.budget);
  call.budget.spend_bytes((parts.size() - 1) * to.size());
  std::string result(parts.front());
  for (size_t i = 1; i < parts.size(); ++i) result.append(to).append(parts[i]);
  return Value(std::move(result));
}

Value joined(const Call& call) {
  const std::string between = call.has(0) ? to_text(call.arguments[0]) : "";
  std::string result;
  const auto items = elements(call.subject, call.budget);
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string item = to_text(items[i]);
    call.budget.spend_bytes(between.size() + item.size());
    if (i > 0) result += between;
    result += item;
  }
  return Value(std::move(result));
}

// Whether one of the texts, if the argument is a list, begins or ends the subject.
template <bool (*fits)(std::string_view, std::string_view)>
Value fits_any(const Call& call) {
  if (call.arguments[0].list() == nullptr) return Value(fits(*call.subject.text(), call.text(0)));
  return Value(std::ranges::any_of(elements(call.arguments[0], call.budget), [&](const Value& option) {
    require(option.text() != nullptr, "a list holds {}, expected a string", option.describe());
    return fits(*call.subject.text(), *option.text());
  }));
}

bool starts(std::string_view text, std::string_view part) { return text.starts_with(part); }
bool ends(std::string_view text, std::string_view part) { return text.ends_with(part); }

// ---- Collections ----

Value first(const Call& call) {
  const auto items = elements(call.subject, call.budget);
  return items.empty() ? Value(Value::Undefined{"the first of nothing"}) : items.front();
}

Value last(const Call& call) {
  const auto items = elements(call.subject, call.budget);
  return items.empty() ? Value(Value::Undefined{"the last of nothing"}) : items.back();
}

Value reversed(const Call& call) {
  auto items = elements(call.subject, call.budget);
  std::ranges::reverse(items);
  if (call.subject.text() == nullptr) return Value(std::move(items));
  std::string text;
  for (const Value& character : items) text += *character.text();
  return Value(std::move(text));
}

Value entries(const Call& call) {
  Value::List pairs;
  require(call.subject.map() != nullptr || call.subject.is_undefined(), "items of {}, expected a dict",
          call.subject.describe());
  if (call.subject.map() != nullptr)
    for (const auto& [key, value] : *call.subject.map()) pairs.emplace_back(Value::List{Value(key), value});
  call.budget.spend(pairs.size());
  return Value(std::move(pairs));
}

Value values(const Call& call) {
  Value::List all;
  for (const auto& entry : *call.subject.map()) all.push_back(entry.second);
  call.budget.spend(all.size());
  return Value(std::move(all));
}

// Those elements for which the test that starts at `argument` holds, of themselves or of an attribute.
template <bool by_attribute, bool wanted>
Value selected(const Call& call) {
  const size_t argument = by_attribute ? 1 : 0;
  Value::List kept;
  for (const Value& item : elements(call.subject, call.budget)) {
    const Value tested = by_attribute ? item.entry(call.text(0)) : item;
    const Arguments rest{
        .positional = call.has(argument + 1) ? Value::List{call.arguments[argument + 1]} : Value::List{}, .named = {}};
    const bool holds =
        call.has(argument) ? apply_test(call.text(argument), tested, rest, call.budget) : tested.truthy();
    if (holds == wanted) kept.push_back(item);
  }
  return Value(std::move(kept));
}

Value mapped(const Call& call) {
  require(call.has(0) != call.has(1), "map has a filter and an attribute, or neither; expected one of them");
  Value::List results;
  for (const Value& item : elements(call.subject, call.budget))
    results.push_back(call.has(0) ? apply_filter(call.text(0), item, {}, call.budget) : item.entry(call.text(1)));
  return Value(std::move(results));
}

// ---- Numbers ----

template <class T>
std::optional<T> read_number(std::string_view text) {
  text = strip(text, Side::both);
  if (text.starts_with('+')) text.remove_prefix(1);
  T number{};
  const auto result = std::from_chars(text.data(), text.data() + text.size(), number);
  return result.ec == std::errc() && result.ptr == text.data() + text.size() ? std::optional(number) : std::nullopt;
}

Value to_integer(const Call& call) {
  if (const auto number = call.subject.integer()) return Value(*number);
  std::optional<double> real;
  if (call.subject.is_real()) real = call.subject.real();
  if (const auto* text = call.subject.text()) {
    call.budget.spend_bytes(text->size());
    if (const auto number = read_number<int64_t>(*text)) return Value(*number);
    real = read_number<double>(*text);
  }
  if (real && std::abs(*real) < 0x1p63) return Value(static_cast<int64_t>(*real));
  return call.has(0) ? call.arguments[0] : Value(int64_t{0});
}

// ---- The tables ----

const std::vector<Builtin>& filters() {
  static const std::vector<Builtin> kFilters = {
      {"trim", {"chars"}, 0, stripped<Side::both>},
      {"upper", {}, 0, transformed<upper>},
      {"lower", {}, 0, transformed<lower>},
      {"capitalize", {}, 0, transformed<capitalize>},
      {"title",
       {},
       0,
       [](const Call& call) {
         const std::string text = call.subject_text();
         call.budget.spend(text.size());
         return Value(title(text));
       }},
      {"replace", {"old", "new", "count"}, 2, replaced},
      {"join", {"d"}, 0, joined},
      {"string", {}, 0, [](const Call& call) { return Value(call.subject_text()); }},
      {"safe", {}, 0, [](const Call& call) { return call.subject; }},
      {"length", {}, 0, [](const Call& call) { return Value(length(call.subject, call.budget)); }},
      {"count", {}, 0, [](const Call& call) { return Value(length(call.subject, call.budget)); }},
      {"default",
       {"default_value", "boolean"},
       0,
       [](const Call& call) {
         const bool missing = call.subject.is_undefined() || (call.arguments[1].truthy() && !call.subject.truthy());
         if (!missing) return call.subject;
         return call.arguments[0].is_undefined() ? Value("") : call.arguments[0];
       }},
      {"tojson",
       {"indent"},
       0,
       [](const Call& call) {
         return Value(to_json(call.subject, call.has(0) ? std::optional(call.integer(0)) : std::nullopt, call.budget));
       }},
      {"list", {}, 0, [](const Call& call) { return Value(elements(call.subject, call.budget)); }},
      {"first", {}, 0, first},
      {"last", {}, 0, last},
      {"reverse", {}, 0, reversed},
      {"items", {}, 0, entries},
      {"map", {"filter", "attribute"}, 1, mapped},
      {"select", {"test", "value"}, 0, selected<false, true>},
      {"reject", {"test", "value"}, 0, selected<false, false>},
      {"selectattr", {"attribute", "test", "value"}, 1, selected<true, true>},
      {"rejectattr", {"attribute", "test", "value"}, 1, selected<true, false>},
      {"int", {"default"}, 0, to_integer},
  };
  return kFilters;
}

const std::vector<Builtin>& text_methods() {
  static const std::vector<Builtin> kMethods = {
      {"strip", {"chars"}, 0, stripped<Side::both>},
      {"lstrip", {"chars"}, 0, stripped<Side::left>},
      {"rstrip", {"chars"}, 0, stripped<Side::right>},
      {"startswith", {"prefix"}, 1, fits_any<starts>},
      {"endswith", {"suffix"}, 1, fits_any<ends>},
      {"split", {"sep", "maxsplit"}, 0, split_text},
      {"upper", {}, 0, transformed<upper>},
      {"lower", {}, 0, transformed<lower>},
      {"capitalize", {}, 0, transformed<capitalize>},
      {"replace",
       {"old", "new", "count"},
       2,
       [](const Call& call) {
         (void)call.text(0);
         (void)call.text(1);
         return replaced(call);
       }},
  };
  return kMethods;
}

const std::vector<Builtin>& map_methods() {
  static const std::vector<Builtin> kMethods = {
      {"items", {}, 0, entries},
      {"keys", {}, 0, [](const Call& call) { return Value(elements(call.subject, call.budget)); }},
      {"values", {}, 0, values},
      {"get",
       {"key", "default"},
       1,
       [](const Call& call) {
         Value found = call.subject.entry(call.text(0));
         if (!found.is_undefined()) return found;
         return call.arguments[1].is_undefined() ? Value(Value::None()) : call.arguments[1];
       }},
  };
  return kMethods;
}

}  // namespace

Value apply_filter(std::string_view name, const Value& subject, const Arguments& arguments, Budget& budget) {
  return call_builtin(filters(), "the filter", name == "d" ? "default" : name, subject, arguments, budget);
}

Value call_method(std::string_view name, const Value& subject, const Arguments& arguments, Budget& budget) {
  if (subject.text() != nullptr)
    return call_builtin(text_methods(), "the method of a string", name, subject, arguments, budget);
  if (subject.map() != nullptr)
    return call_builtin(map_methods(), "the method of a dict", name, subject, arguments, budget);
  fail("{} has no method \"{}\"", subject.describe(), name.substr(0, 80));
}

}  // namespace regard::jinja
