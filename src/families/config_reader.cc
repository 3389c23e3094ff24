#include "families/config_reader.h"

#include <cmath>

namespace regard {
namespace {

// Values that leave a model as it is, whatever the key means.
bool has_no_effect(const nlohmann::json& value) {
  if (value.is_null() || (value.is_structured() && value.empty())) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  if (value.is_number_float()) return value.get<double>() == 0.0 || value.get<double>() == 1.0;
  return value.is_number() && value.get<double>() == 0.0;
}

}  // namespace

const nlohmann::json* ConfigReader::find(const std::string& key) const {
  seen_->keys.insert(key);
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

int64_t ConfigReader::checked_size(const std::string& key, int64_t value, int64_t most) const {
  require(value >= 1 && value <= most, "{}: \"{}\" is {}, expected 1 to {}", name_, key, value, most);
  return value;
}

std::optional<int64_t> ConfigReader::optional_size(const std::string& key) const {
  const auto value = get<int64_t>(key);
  return value ? std::optional(checked_size(key, *value, kMostSize)) : std::nullopt;
}

double ConfigReader::eps(const std::string& key, double otherwise) const {
  const double value = get<double>(key, otherwise);
  require(std::isfinite(value) && value >= 0, "{}: \"{}\" is {}, expected 0 or more", name_, key, value);
  return value;
}

bool ConfigReader::is_object(const std::string& key) const {
  const auto found = object_->find(key);
  return found != object_->end() && found->is_object();
}

ConfigReader ConfigReader::object(const std::string& key) const {
  static const nlohmann::json kNone = nlohmann::json::object();
  const nlohmann::json* value = find(key);
  require(value == nullptr || value->is_object(), "{}: \"{}\" is {}, expected an object", name_, key,
          value == nullptr ? "null" : shown(*value));
  auto& seen = seen_->objects[key];
  if (!seen) seen = std::make_shared<Seen>();
  return {value == nullptr ? kNone : *value, name_ + " \"" + key + "\"", seen};
}

void ConfigReader::ignore(std::initializer_list<const char*> keys) const {
  seen_->keys.insert(keys.begin(), keys.end());
}

void ConfigReader::require_all_understood(std::string_view family) const {
  for (const auto& [key, value] : object_->items()) {
    require(seen_->keys.contains(key) || has_no_effect(value),
            "{}: \"{}\" is {}, which may change what the model computes, and family \"{}\" does not know this key",
            name_, printable(key), shown(value), family);
    const auto nested = seen_->objects.find(key);
    if (nested != seen_->objects.end() && value.is_object())
      ConfigReader(value, name_ + " \"" + printable(key) + "\"", nested->second).require_all_understood(family);
  }
}

}  // namespace regard
