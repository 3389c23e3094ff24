#include "cli/common.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>

#include "cli/standard_streams.h"
#include "tensor/fail.h"
#include "tensor/printable_quotes.h"

namespace regard::cli {

void add_threads(CLI::App& command, int& threads) {
  command.add_option("--threads", threads, "Threads to use (default: one per core)")->check(CLI::Range(1, 1024));
}

DType parse_cache_dtype(std::string_view name) {
  if (name == "int8") return DType::i8;
  if (name == "int4") return DType::i4;
  if (name == "fp8" || name == "fp8_e4m3") return DType::f8_e4m3;
  if (name == "fp8_e5m2") return DType::f8_e5m2;
  return dtype_from_name(name);
}

void add_kv_dtype(CLI::App& command, std::string& kv_dtype) {
  command.add_option("--kv-dtype", kv_dtype, "Type of the cached keys and values (default: f32)")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "int8", "int4", "fp8", "fp8_e4m3", "fp8_e5m2"}));
}

void ModelOptions::add_to(CLI::App& command) {
  command.add_option("-m,--model", model, "A .gguf file, a .safetensors file or a Hugging Face folder")->required();
  add_kv_dtype(command, kv_dtype);
  add_threads(command, threads);
}

std::vector<int32_t> parse_tokens(std::string_view list) {
  std::vector<int32_t> tokens;
  const char* at = list.data();
  const char* const end = at + list.size();
  while (true) {
    const auto [behind, error] = std::from_chars(at, end, tokens.emplace_back());
    const bool separated = behind == end || (*behind == ',' && behind + 1 != end);
    require(error == std::errc() && separated && tokens.back() >= 0,
            "--tokens is \"{}\", expected token ids separated by commas, as 5,17,9", printable_with_quotes(list));
    if (behind == end) return tokens;
    at = behind + 1;
  }
}

std::vector<int32_t> read_token_file(const std::string& path) {
  const std::string text = read_text_file(path);
  // The parser takes a NUL for the text's end, and would not see what comes behind it.
  const bool has_nul = text.find('\0') != std::string::npos;
  const auto json = has_nul ? nlohmann::json() : nlohmann::json::parse(text, nullptr, false);
  std::vector<int32_t> tokens;
  const auto is_id = [](const nlohmann::json& id) {
    return id.is_number_unsigned() && id.get<uint64_t>() <= uint64_t{std::numeric_limits<int32_t>::max()};
  };
  require(json.is_array() && std::ranges::all_of(json, is_id),
          "--tokens: {} holds something else, expected a JSON list of token ids, as [5, 17, 9]", printable(path));
  for (const auto& id : json) tokens.push_back(id.get<int32_t>());
  return tokens;
}

void print_json(const nlohmann::ordered_json& json) {
  std::cout << json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << std::endl;
}

int64_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

std::string read_standard_input() { return {std::istreambuf_iterator<char>(std::cin), {}}; }

std::string read_text_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  require(in.is_open(), "{} can't be opened: {}", path, std::strerror(errno));
  std::string text;
  std::array<char, 1 << 16> buffer{};
  do {
    in.read(buffer.data(), buffer.size());
    text.append(buffer.data(), static_cast<size_t>(in.gcount()));
  } while (in);
  // A folder can be opened, but not read.
  require(!in.bad(), "{} can't be read: {}", path, std::strerror(errno));
  return text;
}

ProgressBar::ProgressBar(int64_t total, const char* unit)
    : total_(total), unit_(unit), terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (terminal_ && shown_percent_ >= 0) say("\r\033[K");
}

void ProgressBar::show(int64_t done) {
  const auto percent = static_cast<int>(100 * done / total_);
  if (!terminal_ || percent == shown_percent_) return;
  shown_percent_ = percent;
  constexpr int kWidth = 40;
  const int filled = percent * kWidth / 100;
  say("\r[{:#<{}}{:.<{}}] {:3}% of {} {}", "", filled, "", kWidth - filled, percent, total_, unit_);
}

}  // namespace regard::cli
