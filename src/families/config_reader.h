#pragma once

#include <algorithm>
#include <initializer_list>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/json_shown.h"
#include "tensor/fail.h"

namespace regard {

// Sizes beyond this are a damaged file, not a model.
inline constexpr int64_t kMostSize = int64_t{1} << 24;
inline constexpr int64_t kMostLayers = 4096;
inline constexpr int64_t kMostExperts = int64_t{1} << 16;

// Typed look-ups in an object of config.json; null counts as absent. Integers pass as numbers, nothing else as
// something else. The reader remembers which keys were asked for, so that no key that changes what a model computes is
// passed over in silence: see require_all_understood.
class ConfigReader {
 public:
  // `name` is what messages call the object, which outlives the reader.
  ConfigReader(const nlohmann::json& object, std::string name)
      : object_(&object), name_(std::move(name)), seen_(std::make_shared<Seen>()) {}

  template <class T>
  [[nodiscard]] std::optional<T> get(const std::string& key) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr) return std::nullopt;
    require(is_a<T>(*value), "{}: \"{}\" is {}, expected {}", name_, key, shown(*value), kind_of<T>());
    return value->template get<T>();
  }
  template <class T>
  [[nodiscard]] T get(const std::string& key, T otherwise) const {
    return get<T>(key).value_or(std::move(otherwise));
  }
  template <class T>
  [[nodiscard]] T required(const std::string& key) const {
    auto value = get<T>(key);
    require(value.has_value(), "{} has no \"{}\"", name_, key);
    return *std::move(value);
  }
  // An integer from 1 to `most`.
  [[nodiscard]] int64_t size(const std::string& key, int64_t most = kMostSize) const {
    return checked_size(key, required<int64_t>(key), most);
  }
  [[nodiscard]] int64_t size_or(const std::string& key, int64_t otherwise, int64_t most = kMostSize) const {
    return checked_size(key, get<int64_t>(key, otherwise), most);
  }
  [[nodiscard]] std::optional<int64_t> optional_size(const std::string& key) const;
  // A finite number of 0 or more.
  [[nodiscard]] double eps(const std::string& key, double otherwise) const;

  [[nodiscard]] bool has(const std::string& key) const { return find(key) != nullptr; }
  // Whether the key is there at all: where null means something else than absence.
  [[nodiscard]] bool contains(const std::string& key) const { return object_->contains(key); }
  [[nodiscard]] bool is_object(const std::string& key) const;
  // A nested object, or an empty one where there is none.
  [[nodiscard]] ConfigReader object(const std::string& key) const;
  [[nodiscard]] bool empty() const { return object_->empty(); }
  [[nodiscard]] const std::string& name() const { return name_; }

  // These keys are known not to matter.
  void ignore(std::initializer_list<const char*> keys) const;
  // Throws Error for a key that was neither asked for nor ignored and whose value may have an effect: anything but
  // null, false, 0, 1.0 and what is empty.
  void require_all_understood(std::string_view family) const;

 private:
  struct Seen {
    std::set<std::string, std::less<>> keys;
    std::map<std::string, std::shared_ptr<Seen>, std::less<>> objects;
  };
  ConfigReader(const nlohmann::json& object, std::string name, std::shared_ptr<Seen> seen)
      : object_(&object), name_(std::move(name)), seen_(std::move(seen)) {}

  // Null: absent.
  [[nodiscard]] const nlohmann::json* find(const std::string& key) const;
  [[nodiscard]] int64_t checked_size(const std::string& key, int64_t value, int64_t most) const;

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
    else if constexpr (std::is_same_v<T, std::vector<std::string>>)
      return "a list of strings";
    else
      return "a list of numbers";
  }

  const nlohmann::json* object_;
  std::string name_;
  std::shared_ptr<Seen> seen_;
};

}  // namespace regard
