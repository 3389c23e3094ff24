#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "checkpoint/json_shown.h"
#include "regard/checkpoint.h"
#include "tensor/fail.h"

namespace regard {

// Typed look-ups in GGUF metadata under an architecture's prefix; integers pass as numbers.
class GgufValues {
 public:
  GgufValues(const Checkpoint& checkpoint, std::string prefix) : checkpoint_(checkpoint), prefix_(std::move(prefix)) {}

  [[nodiscard]] std::optional<int64_t> integer(const std::string& key) const {
    return find<int64_t>(key, "an integer");
  }
  [[nodiscard]] int64_t required_integer(const std::string& key) const {
    const auto value = integer(key);
    require(value.has_value(), "checkpoint: {} has no key \"{}{}\"", checkpoint_.path().string(), prefix_, key);
    return *value;
  }
  [[nodiscard]] std::optional<double> number(const std::string& key) const {
    const MetaValue* value = lookup(key);
    if (value == nullptr) return std::nullopt;
    if (const auto* whole = std::get_if<int64_t>(value)) return static_cast<double>(*whole);
    return find<double>(key, "a number");
  }
  [[nodiscard]] std::optional<std::string> text(const std::string& key) const {
    return find<std::string>(key, "a string");
  }

 private:
  [[nodiscard]] const MetaValue* lookup(const std::string& key) const {
    const auto found = checkpoint_.metadata().find(prefix_ + key);
    return found == checkpoint_.metadata().end() ? nullptr : &found->second;
  }
  template <class T>
  [[nodiscard]] std::optional<T> find(const std::string& key, const char* kind) const {
    const MetaValue* value = lookup(key);
    if (value == nullptr) return std::nullopt;
    require(std::holds_alternative<T>(*value), "checkpoint: {}: key \"{}{}\" is of the wrong kind, expected {}",
            checkpoint_.path().string(), prefix_, key, kind);
    return std::get<T>(*value);
  }

  const Checkpoint& checkpoint_;
  std::string prefix_;
};

// Typed look-ups in an object of config.json; null counts as absent. Integers pass as numbers, nothing else as
// something else.
class JsonValues {
 public:
  JsonValues(const nlohmann::json& object, std::string name) : object_(object), name_(std::move(name)) {}

  template <class T>
  [[nodiscard]] std::optional<T> get(const std::string& key) const {
    const auto found = object_.find(key);
    if (found == object_.end() || found->is_null()) return std::nullopt;
    require(is_a<T>(*found), "{}: \"{}\" is {}, expected {}", name_, key, shown(*found), kind_of<T>());
    return found->template get<T>();
  }
  template <class T>
  [[nodiscard]] T required(const std::string& key) const {
    const auto value = get<T>(key);
    require(value.has_value(), "{} has no \"{}\"", name_, key);
    return *value;
  }
  // A nested object, or an empty one where there is none.
  [[nodiscard]] JsonValues object(const std::string& key) const {
    static const nlohmann::json kNone = nlohmann::json::object();
    const auto found = object_.find(key);
    if (found == object_.end() || found->is_null()) return {kNone, name_};
    require(found->is_object(), "{}: \"{}\" is {}, expected an object", name_, key, shown(*found));
    return {*found, name_ + " \"" + key + "\""};
  }
  [[nodiscard]] bool empty() const { return object_.empty(); }

 private:
  template <class T>
  static bool is_a(const nlohmann::json& value) {
    if constexpr (std::is_same_v<T, int64_t>)
      return value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{1} << 62);
    else if constexpr (std::is_same_v<T, double>)
      return value.is_number();
    else if constexpr (std::is_same_v<T, bool>)
      return value.is_boolean();
    else if constexpr (std::is_same_v<T, std::string>)
      return value.is_string();
    else
      return value.is_array() && std::ranges::all_of(value, is_a<typename T::value_type>);
  }
  template <class T>
  static const char* kind_of() {
    if constexpr (std::is_same_v<T, int64_t>)
      return "an integer";
    else if constexpr (std::is_same_v<T, double>)
      return "a number";
    else if constexpr (std::is_same_v<T, bool>)
      return "true or false";
    else if constexpr (std::is_same_v<T, std::string>)
      return "a string";
    else
      return "a list of numbers";
  }

  const nlohmann::json& object_;
  std::string name_;
};

}  // namespace regard
