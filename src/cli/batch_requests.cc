#include "cli/batch_requests.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <unordered_set>

#include "checkpoint/json_shown.h"
#include "cli/common.h"
#include "tensor/fail.h"
#include "tensor/printable_quotes.h"

namespace regard::cli {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 10> kKeys = {"id",   "prompt", "messages", "max_tokens", "temperature",
                                                    "seed", "top_k",  "top_p",    "stop",       "salt"};

// Four bytes for each token of a context of four million; encoding more would take minutes before it is refused.
constexpr size_t kMostRequestBytes = size_t{1} << 24;

// The value of a key, or nullptr where there is none or null.
const Json* find_value(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

// Some programs write whole numbers as 64.0.
std::optional<uint64_t> whole_number(const Json& value) {
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  if (!value.is_number_float()) return {};
  constexpr double kMostExact = 0x1p53;
  const auto number = value.get<double>();
  if (!(number >= 0 && number <= kMostExact) || number != std::floor(number)) return {};
  return static_cast<uint64_t>(number);
}

// A whole number from `least` on that its type holds; where there is none, the number stays what it is.
template <class Number>
void read_whole_number(const Json& object, const char* key, Number least, Number& number) {
  const Json* const value = find_value(object, key);
  if (value == nullptr) return;
  constexpr Number kMost = std::numeric_limits<Number>::max();
  const auto whole = whole_number(*value);
  require(whole && *whole >= static_cast<uint64_t>(least) && *whole <= static_cast<uint64_t>(kMost),
          "{} is {}, expected a whole number from {} to {}", key, shown(*value), least, kMost);
  number = static_cast<Number>(*whole);
}

void read_number(const Json& object, const char* key, float& number) {
  const Json* const value = find_value(object, key);
  if (value == nullptr) return;
  constexpr double kMost = std::numeric_limits<float>::max();
  require(value->is_number() && value->get<double>() >= -kMost && value->get<double>() <= kMost,
          "{} is {}, expected a number", key, shown(*value));
  number = value->get<float>();
}

ChatMessage read_message(const Json& value) {
  const auto is_text = [&](const char* key) { return value.contains(key) && value[key].is_string(); };
  require(value.is_object() && value.size() == 2 && is_text("role") && is_text("content"),
          "messages hold {}, expected objects with the texts role and content",
          value.is_object() ? "an object with something else" : shown(value));
  return {.role = value["role"].get<std::string>(), .content = value["content"].get<std::string>()};
}

// A prompt, or messages.
void read_text(const Json& object, BatchRequest& request) {
  const Json* const messages = find_value(object, "messages");
  const auto prompt = object.find("prompt");
  if (messages == nullptr) {
    require(prompt != object.end(), "prompt is missing, expected a text");
    require(prompt->is_string(), "prompt is {}, expected a text", shown(*prompt));
    request.prompt = prompt->get<std::string>();
    return;
  }
  require(find_value(object, "prompt") == nullptr, "prompt and messages are both given, expected one of them");
  require(messages->is_array() && !messages->empty(), "messages is {}, expected a list of messages",
          messages->empty() ? "empty" : shown(*messages));
  for (const Json& message : *messages) request.messages.push_back(read_message(message));
}

// One text, or a list of them.
void read_stop(const Json& object, std::vector<std::string>& texts) {
  const Json* const value = find_value(object, "stop");
  if (value == nullptr) return;
  for (const Json& text : value->is_array() ? *value : Json::array({*value})) {
    require(text.is_string() && !text.get_ref<const std::string&>().empty(),
            "stop is {}, expected a text that is not empty, or a list of them", shown(text));
    texts.push_back(text.get<std::string>());
  }
}

void read_fields(const Json& object, BatchRequest& request) {
  read_text(object, request);
  read_stop(object, request.settings.stop_texts);
  GenerationRequest& settings = request.settings;
  read_whole_number<int64_t>(object, "max_tokens", 1, settings.max_tokens);
  read_number(object, "temperature", settings.sampler.temperature);
  read_whole_number<uint64_t>(object, "seed", 0, settings.sampler.seed);
  read_whole_number<int32_t>(object, "top_k", 0, settings.sampler.top_k);
  read_number(object, "top_p", settings.sampler.top_p);
  read_whole_number<uint64_t>(object, "salt", 0, settings.salt);
}

}  // namespace

void for_each_json_line(
    const std::string& path, size_t most_bytes,
    const std::function<void(const Json& object, std::string_view line, const std::string& where)>& read) {
  const bool piped = path == "-";
  const std::string text = piped ? read_standard_input() : read_text_file(path);
  std::string_view rest = text;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}", piped ? "standard input" : path, number);
    require(line.size() <= most_bytes, "{} has {} bytes, expected at most {}", where, line.size(), most_bytes);
    // The parser takes a NUL for the text's end, and would not see what comes behind it.
    const bool has_nul = line.find('\0') != std::string_view::npos;
    const Json object = has_nul ? Json() : Json::parse(line, nullptr, false);
    require(object.is_object(), "{}: no JSON object: {}", where, printable_with_quotes(line));
    read(object, line, where);
  }
}

std::vector<BatchRequest> read_batch_requests(const std::string& path) {
  std::vector<BatchRequest> requests;
  std::unordered_set<std::string> ids;
  for_each_json_line(path, kMostRequestBytes, [&](const Json& object, std::string_view, const std::string& where) {
    const auto id = object.find("id");
    require(id != object.end() && id->is_string(), "{}: id is {}, expected a text", where,
            id == object.end() ? "missing" : shown(*id));
    for (const auto& [key, value] : object.items())
      require(std::ranges::find(kKeys, key) != kKeys.end(), "{}: no request has a key \"{}\", expected {}", where,
              printable(key), fmt::join(kKeys, ", "));
    BatchRequest request;
    request.id = id->get<std::string>();
    require(ids.insert(request.id).second, "{}: id \"{}\" comes twice", where, printable(request.id));
    try {
      read_fields(object, request);
    } catch (const Error& error) {
      request.error = error.what();
    }
    requests.push_back(std::move(request));
  });
  return requests;
}

}  // namespace regard::cli
