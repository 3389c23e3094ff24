#include "cli/batch_results.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "cli/common.h"
#include "tensor/fail.h"
#include "tensor/replaced_file.h"

namespace regard::cli {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

const char* name_of(FinishReason finish) {
  switch (finish) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      break;
  }
  return "error";
}

bool is_tokens(const Json& value) {
  return value.is_array() && std::ranges::all_of(value, [](const Json& token) { return token.is_number_unsigned(); });
}

bool is_result(const Json& object) {
  const auto has = [&](const char* key, auto&& is_right) { return object.contains(key) && is_right(object[key]); };
  const auto text = [](const Json& value) { return value.is_string(); };
  if (!has("id", text) || !has("prompt_tokens", is_tokens) || !has("tokens", is_tokens) || !has("text", text) ||
      !has("finish_reason", text))
    return false;
  const Json& reason = object["finish_reason"];
  if (reason == "error") return object.size() == 6 && has("error", text);
  return object.size() == 5 && (reason == "stop" || reason == "length");
}

}  // namespace

std::string result_line(const BatchRequest& request, std::span<const int32_t> prompt_tokens,
                        const GeneratedText& text) {
  OrderedJson json = {{"id", request.id},
                      {"prompt_tokens", prompt_tokens},
                      {"tokens", text.tokens},
                      {"text", text.text},
                      {"finish_reason", name_of(text.finish)}};
  if (text.finish == FinishReason::error) json["error"] = text.error;
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

std::vector<std::string> read_batch_results(const std::string& path, std::span<const BatchRequest> requests) {
  std::vector<std::string> lines(requests.size());
  std::unordered_set<size_t> seen;
  if (!std::filesystem::exists(path)) return lines;
  std::unordered_map<std::string_view, size_t> places;
  for (size_t i = 0; i < requests.size(); ++i) places.emplace(requests[i].id, i);
  for_each_json_line(path, [&](const Json& object, std::string_view line, const std::string& where) {
    require(is_result(object), "{}: no result of a batch: {}", where, printable(line));
    const auto& id = object["id"].get_ref<const std::string&>();
    const auto place = places.find(id);
    require(place != places.end(), "{}: id \"{}\" is not among the requests", where, printable(id));
    require(seen.insert(place->second).second, "{}: id \"{}\" comes twice", where, printable(id));
    // What failed may succeed now.
    if (object["finish_reason"] == "error") return;
    lines[place->second] = line;
  });
  return lines;
}

void check_prompts(std::span<const std::string> lines, std::span<const BatchRequest> requests,
                   const Tokenizer& tokenizer) {
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].empty()) continue;
    const auto tokens = Json::parse(lines[i])["prompt_tokens"].get<std::vector<int32_t>>();
    require(
        tokens == tokenizer.encode(requests[i].prompt),
        "the result that is there for id \"{}\" belongs to another prompt or model; remove its line, or all without "
        "--resume",
        printable(requests[i].id));
  }
}

void ResultsFile::write() {
  using Clock = std::chrono::steady_clock;
  // The whole text is written every time: so a twentieth of the time at most.
  constexpr int kShare = 20;
  const auto start = Clock::now();
  ReplacedFile file(path_);
  for (const std::string& line : lines_)
    if (!line.empty()) file.stream() << line << '\n';
  file.commit();
  changed_ = false;
  const auto end = Clock::now();
  due_ = end + std::max<Clock::duration>(std::chrono::seconds(1), kShare * (end - start));
}

void ResultsFile::write_now_and_then() {
  if (changed_ && std::chrono::steady_clock::now() >= due_) write();
}

}  // namespace regard::cli
