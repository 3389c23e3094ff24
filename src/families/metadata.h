#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

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
    require(std::holds_alternative<T>(*value), "checkpoint: {}: key \"{}{}\" is no {}", checkpoint_.path().string(),
            prefix_, key, kind + 2);
    return std::get<T>(*value);
  }

  const Checkpoint& checkpoint_;
  std::string prefix_;
};

// Typed look-ups in an object of config.json; null counts as absent.
class JsonValues {
 public:
  JsonValues(const nlohmann::json& object, std::string name) : object_(object), name_(std::move(name)) {}

  template <class T>
  [[nodiscard]] std::optional<T> get(const std::string& key) const {
    const auto found = object_.find(key);
    if (found == object_.end() || found->is_null()) return std::nullopt;
    try {
      return found->template get<T>();
    } catch (const nlohmann::json::exception&) {
      fail("{}: \"{}\" is {}, which is of the wrong kind", name_, key, found->dump().substr(0, 80));
    }
  }
  template <class T>
  [[nodiscard]] T required(const std::string& key) const {
    const auto value = get<T>(key);
    require(value.has_value(), "{} has no \"{}\"", name_, key);
    return *value;
  }
  // A nested object, or an empty one.
  [[nodiscard]] JsonValues object(const std::string& key) const {
    static const nlohmann::json kNone = nlohmann::json::object();
    const auto found = object_.find(key);
    return {found == object_.end() || !found->is_object() ? kNone : *found, name_ + " \"" + key + "\""};
  }
  [[nodiscard]] bool empty() const { return object_.empty(); }

 private:
  const nlohmann::json& object_;
  std::string name_;
};

}  // namespace regard
