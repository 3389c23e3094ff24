#include "cli/batch_results.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>

#include "tensor/fail.h"

namespace regard::cli {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

const char* name_of(Scheduler::Finish finish) {
  switch (finish) {
    case Scheduler::Finish::stop:
      return "stop";
    case Scheduler::Finish::length:
      return "length";
    case Scheduler::Finish::error:
      break;
  }
  return "error";
}

std::string visible_text(const Tokenizer& tokenizer, std::span<const int32_t> tokens) {
  std::vector<int32_t> visible;
  for (const int32_t token : tokens)
    if (!tokenizer.is_special(token)) visible.push_back(token);
  return tokenizer.decode(visible);
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

// Writes a file beside it first: who reads finds the old text or the new one, never a part.
void replace_file(const std::string& path, std::string_view text) {
  const std::string temporary = path + ".tmp";
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  require(out.is_open(), "{} can't be written", path);
  out << text;
  out.close();
  const int file = open(temporary.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = file >= 0 && fsync(file) == 0;
  if (file >= 0) close(file);
  std::error_code error;
  const bool written = out.good() && synced;
  if (written) std::filesystem::rename(temporary, path, error);
  if (written && !error) return;
  const std::string reason = written ? error.message() : "the disk may be full";
  std::filesystem::remove(temporary, error);
  fail("{} can't be written: {}", path, reason);
}

}  // namespace

std::string result_line(const BatchRequest& request, std::span<const int32_t> prompt_tokens,
                        const Scheduler::Result& result, const Tokenizer& tokenizer) {
  OrderedJson json = {{"id", request.id},
                      {"prompt_tokens", prompt_tokens},
                      {"tokens", result.tokens},
                      {"text", visible_text(tokenizer, result.tokens)},
                      {"finish_reason", name_of(result.finish)}};
  if (result.finish == Scheduler::Finish::error) json["error"] = result.error;
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

std::vector<std::string> read_batch_results(const std::string& path, std::span<const BatchRequest> requests) {
  std::vector<std::string> lines(requests.size());
  if (!std::filesystem::exists(path)) return lines;
  std::unordered_map<std::string_view, size_t> places;
  for (size_t i = 0; i < requests.size(); ++i) places.emplace(requests[i].id, i);
  for_each_json_line(path, [&](const Json& object, std::string_view line, const std::string& where) {
    require(is_result(object), "{}: no result of a batch: {}", where, printable(line));
    const auto& id = object["id"].get_ref<const std::string&>();
    const auto place = places.find(id);
    require(place != places.end(), "{}: id \"{}\" is not among the requests", where, printable(id));
    require(lines[place->second].empty(), "{}: id \"{}\" comes twice", where, printable(id));
    lines[place->second] = line;
  });
  return lines;
}

bool ResultsFile::take_finished() {
  const size_t before = taken_;
  for (; taken_ < lines_.size() && !lines_[taken_].empty(); ++taken_) {
    text_ += lines_[taken_] + "\n";
    lines_[taken_] = {};
  }
  return taken_ > before;
}

void ResultsFile::write() {
  using Clock = std::chrono::steady_clock;
  // The whole text is written every time: so a twentieth of the time at most.
  constexpr int kShare = 20;
  const auto start = Clock::now();
  take_finished();
  replace_file(path_, text_);
  const auto end = Clock::now();
  due_ = end + std::max<Clock::duration>(std::chrono::seconds(1), kShare * (end - start));
}

void ResultsFile::write_now_and_then() {
  if (std::chrono::steady_clock::now() >= due_ && take_finished()) write();
}

}  // namespace regard::cli
