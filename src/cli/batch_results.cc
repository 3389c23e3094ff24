#include "cli/batch_results.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "cli/common.h"
#include "tensor/checksum.h"
#include "tensor/fail.h"
#include "tensor/printable_quotes.h"
#include "tensor/replaced_file.h"

namespace regard::cli {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// Prompts of the largest requests, as ids.
constexpr size_t kMostResultBytes = size_t{1} << 30;

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

// On one line; bytes that are no UTF-8 become U+FFFD.
std::string dump(const OrderedJson& json) { return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace); }

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
  const size_t size = has("digest", text) ? 6 : 5;
  return object.size() == size && (reason == "stop" || reason == "length");
}

// Sixteen hexadecimal digits that depend on all that a result depends on, and on the result. `line` has no digest yet.
std::string digest_of(const OrderedJson& line, const BatchRequest& request, const ResultSource& source) {
  const GenerationRequest& settings = request.settings;
  const std::string text = fmt::format("{}\n{} {} {} {} {} {}\n{}", source.name, settings.max_tokens,
                                       settings.sampler.temperature, settings.sampler.top_k, settings.sampler.top_p,
                                       settings.sampler.seed, dump(settings.stop_texts), dump(line));
  return fmt::format("{:016x}", checksum(std::as_bytes(std::span(text))));
}

void check_result(const std::string& line, const BatchRequest& request, const ResultSource& source) {
  constexpr const char* kRemedy = "remove its line, or give another --output";
  OrderedJson json = OrderedJson::parse(line);
  require(json["prompt_tokens"].get<std::vector<int32_t>>() == prompt_tokens(request, source),
          "the result that is there for id \"{}\" belongs to another prompt or model; {}", printable(request.id),
          kRemedy);
  const std::string digest = json.value("digest", "");
  json.erase("digest");
  require(digest == digest_of(json, request, source),
          "the result that is there for id \"{}\" was made by another model or with other settings, or was changed; {}",
          printable(request.id), kRemedy);
}

}  // namespace

std::vector<int32_t> prompt_tokens(const BatchRequest& request, const ResultSource& source) {
  if (request.messages.empty()) return source.tokenizer.encode(request.prompt);
  return source.tokenizer.encode(apply_chat_template(source.checkpoint, source.tokenizer, request.messages),
                                 Tokenizer::Bos::never);
}

std::string result_line(const BatchRequest& request, std::span<const int32_t> prompt, const GeneratedText& text,
                        const ResultSource& source) {
  OrderedJson json = {{"id", request.id},
                      {"prompt_tokens", prompt},
                      {"tokens", text.tokens},
                      {"text", text.text},
                      {"finish_reason", name_of(text.finish)}};
  if (text.finish == FinishReason::error) {
    json["error"] = text.error;
    return dump(json);
  }
  // As a reader will see it: with U+FFFD for bytes that are no UTF-8.
  json = OrderedJson::parse(dump(json));
  json["digest"] = digest_of(json, request, source);
  return dump(json);
}

std::vector<std::string> read_batch_results(const std::string& path, std::span<const BatchRequest> requests) {
  std::vector<std::string> lines(requests.size());
  std::unordered_set<size_t> seen;
  if (!std::filesystem::exists(path)) return lines;
  std::unordered_map<std::string_view, size_t> places;
  for (size_t i = 0; i < requests.size(); ++i) places.emplace(requests[i].id, i);
  for_each_json_line(path, kMostResultBytes, [&](const Json& object, std::string_view line, const std::string& where) {
    require(is_result(object), "{}: no result of a batch: {}", where, printable_with_quotes(line));
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

void check_results(std::span<const std::string> lines, std::span<const BatchRequest> requests,
                   const ResultSource& source) {
  for (size_t i = 0; i < lines.size(); ++i)
    if (!lines[i].empty()) check_result(lines[i], requests[i], source);
}

FileLock lock_output(const std::string& path, bool resumed) {
  // Refuses what is no file, and what can't be written.
  { const ReplacedFile probe(path); }
  FileLock lock(path, true);
  require(lock.open(), "{} can't be written: {}", path, std::strerror(errno));
  require(!lock.busy(), "{} can't be written: another batch writes to it", path);
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  require(resumed || error || bytes == 0,
          "{} has {} bytes already; give --resume to keep its results, or another --output", path, bytes);
  return lock;
}

void ResultsFile::write() {
  using Clock = std::chrono::steady_clock;
  // The whole text is written every time: so a twentieth of the time at most.
  constexpr int kShare = 20;
  const auto start = Clock::now();
  ReplacedFile file(path_);
  for (const std::string& line : lines_)
    if (!line.empty()) file.stream() << line << '\n';
  lock_ = file.commit();
  changed_ = false;
  const auto end = Clock::now();
  due_ = end + std::max<Clock::duration>(std::chrono::seconds(1), kShare * (end - start));
}

void ResultsFile::write_now_and_then() {
  if (changed_ && std::chrono::steady_clock::now() >= due_) write();
}

}  // namespace regard::cli
