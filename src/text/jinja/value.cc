#include "text/jinja/value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "text/jinja/text.h"

namespace regard::jinja {
namespace {

// Python writes the shortest digits that read back, and always marks a real number as one.
std::string real_to_text(double number) {
  std::string text = fmt::format("{}", number);
  if (std::isfinite(number) && text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

class JsonWriter {
 public:
  JsonWriter(std::optional<int64_t> indent, Budget& budget) : indent_(indent), budget_(budget) {}

  void write(const Value& value) {
    budget_.spend();
    if (const auto* text = value.text()) {
      budget_.spend_bytes(text->size());
      out_ += nlohmann::json(*text).dump();
    } else if (const auto* list = value.list()) {
      write_all('[', ']', *list, [&](const Value& item) { write(item); });
    } else if (const auto* map = value.map()) {
      write_all('{', '}', *map, [&](const auto& entry) {
        write(Value(entry.first));
        out_ += ": ";
        write(entry.second);
      });
    } else if (value.is_none()) {
      out_ += "null";
    } else if (value.is_boolean()) {
      out_ += value.truthy() ? "true" : "false";
    } else if (value.is_number()) {
      out_ += to_text(value);
    } else {
      fail("tojson: {} can't be written as JSON", value.describe());
    }
  }

  std::string take() { return std::move(out_); }

 private:
  template <class Parts, class WritePart>
  void write_all(char open, char close, const Parts& parts, const WritePart& write_part) {
    out_ += open;
    ++level_;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i > 0) out_ += indent_ ? "," : ", ";
      new_line();
      write_part(parts[i]);
    }
    --level_;
    if (!parts.empty()) new_line();
    out_ += close;
  }

  void new_line() {
    if (!indent_) return;
    const auto spaces = static_cast<size_t>(std::max<int64_t>(*indent_, 0) * level_);
    budget_.spend_bytes(spaces);
    out_.append("\n").append(spaces, ' ');
  }

  std::optional<int64_t> indent_;
  Budget& budget_;
  std::string out_;
  int64_t level_ = 0;
};

bool equal_maps(const Value& a, const Value& b, Budget& budget) {
  return a.map()->size() == b.map()->size() && std::ranges::all_of(*a.map(), [&](const auto& entry) {
           budget.spend(b.map()->size());
           const auto found = std::ranges::find(*b.map(), entry.first, &Value::Map::value_type::first);
           return found != b.map()->end() && equal(entry.second, found->second, budget);
         });
}

}  // namespace

Value::Value(List items) {
  int deepest = 0;
  for (const Value& item : items) deepest = std::max(deepest, item.depth());
  require(deepest < kMostNesting, "lists are nested more than {} deep", kMostNesting);
  data_ = std::make_shared<const Nested<List>>(Nested<List>{std::move(items), deepest + 1});
}

Value::Value(Map entries) {
  int deepest = 0;
  for (const auto& [key, value] : entries) deepest = std::max(deepest, value.depth());
  require(deepest < kMostNesting, "maps are nested more than {} deep", kMostNesting);
  data_ = std::make_shared<const Nested<Map>>(Nested<Map>{std::move(entries), deepest + 1});
}

std::optional<int64_t> Value::integer() const {
  if (const auto* number = std::get_if<int64_t>(&data_)) return *number;
  if (const auto* truth = std::get_if<bool>(&data_)) return *truth ? 1 : 0;
  return std::nullopt;
}

const std::string* Value::text() const {
  const auto* shared = std::get_if<std::shared_ptr<const std::string>>(&data_);
  return shared == nullptr ? nullptr : shared->get();
}

const Value::List* Value::list() const {
  const auto* shared = std::get_if<std::shared_ptr<const Nested<List>>>(&data_);
  return shared == nullptr ? nullptr : &(*shared)->parts;
}

const Value::Map* Value::map() const {
  const auto* shared = std::get_if<std::shared_ptr<const Nested<Map>>>(&data_);
  return shared == nullptr ? nullptr : &(*shared)->parts;
}

std::optional<Value::Namespace> Value::space() const {
  const auto* found = std::get_if<Namespace>(&data_);
  return found == nullptr ? std::nullopt : std::optional(*found);
}

std::optional<Value::Function> Value::function() const {
  const auto* found = std::get_if<Function>(&data_);
  return found == nullptr ? std::nullopt : std::optional(*found);
}

double Value::real() const {
  if (const auto* number = std::get_if<double>(&data_)) return *number;
  return static_cast<double>(integer().value_or(0));
}

Value Value::entry(std::string_view key) const {
  if (map() != nullptr)
    for (const auto& [name, value] : *map())
      if (name == key) return value;
  return Value(Undefined{std::string(key)});
}

bool Value::truthy() const {
  if (is_number()) return real() != 0;
  if (text() != nullptr) return !text()->empty();
  if (list() != nullptr) return !list()->empty();
  if (map() != nullptr) return !map()->empty();
  return space().has_value() || function().has_value();
}

std::string Value::describe() const {
  if (const auto* undefined = std::get_if<Undefined>(&data_))
    return undefined->name.empty() ? "an undefined value" : fmt::format("the undefined '{}'", undefined->name);
  if (is_none()) return "none";
  if (is_boolean()) return "a boolean";
  if (is_number()) return "a number";
  if (text() != nullptr) return "a string";
  if (list() != nullptr) return "a list";
  if (function()) return "a function";
  return map() != nullptr ? "a dict" : "a namespace";
}

int Value::depth() const {
  if (const auto* nested = std::get_if<std::shared_ptr<const Nested<List>>>(&data_)) return (*nested)->depth;
  if (const auto* nested = std::get_if<std::shared_ptr<const Nested<Map>>>(&data_)) return (*nested)->depth;
  return 0;
}

std::string to_text(const Value& value) {
  if (value.text() != nullptr) return *value.text();
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (value.is_boolean()) return value.truthy() ? "True" : "False";
  if (value.is_real()) return real_to_text(value.real());
  if (const auto number = value.integer()) return fmt::format("{}", *number);
  fail("{} can't be written as text, except by tojson", value.describe());
}

std::string to_json(const Value& value, std::optional<int64_t> indent, Budget& budget) {
  JsonWriter writer(indent, budget);
  writer.write(value);
  return writer.take();
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.spend();
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.spend_bytes(std::min(a.text()->size(), b.text()->size()));
    return *a.text() == *b.text();
  }
  if (a.integer() && b.integer()) return *a.integer() == *b.integer();
  if (a.is_number() && b.is_number()) return a.real() == b.real();
  if (a.list() != nullptr && b.list() != nullptr)
    return std::ranges::equal(*a.list(), *b.list(),
                              [&](const Value& x, const Value& y) { return equal(x, y, budget); });
  if (a.map() != nullptr && b.map() != nullptr) return equal_maps(a, b, budget);
  if (a.space() && b.space()) return a.space()->index == b.space()->index;
  if (a.function() && b.function()) return a.function()->index == b.function()->index;
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

Value::List elements(const Value& value, Budget& budget) {
  Value::List items;
  if (const auto* list = value.list()) {
    items = *list;
  } else if (const auto* map = value.map()) {
    for (const auto& entry : *map) items.emplace_back(entry.first);
  } else if (const auto* text = value.text()) {
    budget.spend(text->size());
    for (const std::string_view character : characters(*text)) items.emplace_back(character);
  } else {
    require(value.is_undefined(), "{} can't be looped over", value.describe());
  }
  budget.spend(items.size());
  return items;
}

int64_t length(const Value& value, Budget& budget) {
  if (const auto* list = value.list()) return static_cast<int64_t>(list->size());
  if (const auto* map = value.map()) return static_cast<int64_t>(map->size());
  if (value.is_undefined()) return 0;
  require(value.text() != nullptr, "{} has no length", value.describe());
  budget.spend_bytes(value.text()->size());
  return static_cast<int64_t>(count_characters(*value.text()));
}

}  // namespace regard::jinja
