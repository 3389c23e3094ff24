#include "cli/batch_requests.h"

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_set>

#include "checkpoint/json_shown.h"
#include "cli/common.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 8> kKeys = {"id",   "prompt", "max_tokens", "temperature",
                                                   "seed", "top_k",  "top_p",      "salt"};

// A whole number from `least` on that its type holds; where the key is missing, the number stays what it is.
template <class Number>
void read_whole_number(const Json& object, const char* key, Number least, Number& number) {
  const auto found = object.find(key);
  if (found == object.end()) return;
  constexpr Number kMost = std::numeric_limits<Number>::max();
  const bool fits = found->is_number_unsigned() && found->get<uint64_t>() >= static_cast<uint64_t>(least) &&
                    found->get<uint64_t>() <= static_cast<uint64_t>(kMost);
  require(fits, "{} is {}, expected a whole number from {} to {}", key, shown(*found), least, kMost);
  number = found->get<Number>();
}

void read_number(const Json& object, const char* key, float& number) {
  const auto found = object.find(key);
  if (found == object.end()) return;
  constexpr double kMost = std::numeric_limits<float>::max();
  require(found->is_number() && found->get<double>() >= -kMost && found->get<double>() <= kMost,
          "{} is {}, expected a number", key, shown(*found));
  number = found->get<float>();
}

void read_fields(const Json& object, BatchRequest& request) {
  const auto prompt = object.find("prompt");
  require(prompt != object.end(), "prompt is missing, expected a text");
  require(prompt->is_string(), "prompt is {}, expected a text", shown(*prompt));
  request.prompt = prompt->get<std::string>();
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
    const std::string& path,
    const std::function<void(const Json& object, std::string_view line, const std::string& where)>& read) {
  const std::string text = read_text_file(path);
  std::string_view rest = text;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}", path, number);
    const Json object = Json::parse(line, nullptr, false);
    require(object.is_object(), "{}: no JSON object: {}", where, printable(line));
    read(object, line, where);
  }
}

std::vector<BatchRequest> read_batch_requests(const std::string& path) {
  std::vector<BatchRequest> requests;
  std::unordered_set<std::string> ids;
  for_each_json_line(path, [&](const Json& object, std::string_view, const std::string& where) {
    const auto id = object.find("id");
    require(id != object.end() && id->is_string(), "{}: id is {}, expected a text", where,
            id == object.end() ? "missing" : shown(*id));
    for (const auto& [key, value] : object.items())
      require(std::ranges::find(kKeys, key) != kKeys.end(), "{}: no request has a key \"{}\", expected {}", where,
              printable(key), fmt::join(kKeys, ", "));
    BatchRequest request{.id = id->get<std::string>(), .prompt = {}, .settings = {}, .error = {}};
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
