#include "families/gguf_reader.h"

#include <cmath>

#include "tensor/fail.h"

namespace regard {
namespace {

// Values that leave a model as it is, whatever the key means.
bool has_no_effect(const MetaValue& value) {
  if (const auto* whole = std::get_if<int64_t>(&value)) return *whole == 0;
  if (const auto* number = std::get_if<double>(&value)) return *number == 0.0 || *number == 1.0;
  if (const auto* flag = std::get_if<bool>(&value)) return !*flag;
  return false;
}

}  // namespace

const MetaValue* GgufReader::lookup(const std::string& key) const {
  seen_.insert(key);
  const auto found = checkpoint_.metadata().find(architecture_ + "." + key);
  return found == checkpoint_.metadata().end() ? nullptr : &found->second;
}

template <class T>
std::optional<T> GgufReader::find(const std::string& key, const char* kind) const {
  const MetaValue* value = lookup(key);
  if (value == nullptr) return std::nullopt;
  require(std::holds_alternative<T>(*value), "checkpoint: {}: key \"{}.{}\" is of the wrong kind, expected {}",
          checkpoint_.path().string(), architecture_, key, kind);
  return std::get<T>(*value);
}

std::optional<int64_t> GgufReader::integer(const std::string& key) const { return find<int64_t>(key, "an integer"); }
std::optional<bool> GgufReader::boolean(const std::string& key) const { return find<bool>(key, "true or false"); }
std::optional<std::string> GgufReader::text(const std::string& key) const { return find<std::string>(key, "a string"); }

std::optional<double> GgufReader::number(const std::string& key) const {
  const MetaValue* value = lookup(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* whole = std::get_if<int64_t>(value)) return static_cast<double>(*whole);
  return find<double>(key, "a number");
}

std::vector<int64_t> GgufReader::integers_by_layer(const std::string& key, int64_t layers, int64_t otherwise) const {
  const MetaValue* value = lookup(key);
  if (value == nullptr || !std::holds_alternative<std::vector<int64_t>>(*value))
    return std::vector<int64_t>(static_cast<size_t>(layers), integer(key).value_or(otherwise));
  auto list = std::get<std::vector<int64_t>>(*value);
  require(std::ssize(list) == layers,
          "checkpoint: {}: key \"{}.{}\" has {} entries, expected an integer or a list with one for each "
          "of {} layers",
          checkpoint_.path().string(), architecture_, key, list.size(), layers);
  return list;
}

int64_t GgufReader::size(const std::string& key, int64_t most) const {
  const auto value = integer(key);
  require(value.has_value(), "checkpoint: {} has no key \"{}.{}\"", checkpoint_.path().string(), architecture_, key);
  require(*value >= 1 && *value <= most, "checkpoint: {}: key \"{}.{}\" is {}, expected 1 to {}",
          checkpoint_.path().string(), architecture_, key, *value, most);
  return *value;
}

double GgufReader::eps(const std::string& key, double otherwise) const {
  const double value = number(key).value_or(otherwise);
  require(std::isfinite(value) && value >= 0, "checkpoint: {}: key \"{}.{}\" is {}, expected 0 or more",
          checkpoint_.path().string(), architecture_, key, value);
  return value;
}

void GgufReader::require_all_understood() const {
  const std::string prefix = architecture_ + ".";
  for (auto entry = checkpoint_.metadata().lower_bound(prefix);
       entry != checkpoint_.metadata().end() && entry->first.starts_with(prefix); ++entry)
    require(seen_.contains(std::string_view(entry->first).substr(prefix.size())) || has_no_effect(entry->second),
            "checkpoint: {}: key \"{}\" may change what the model computes, and architecture \"{}\" does not know it",
            checkpoint_.path().string(), printable(entry->first), architecture_);
}

}  // namespace regard
