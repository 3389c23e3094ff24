#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "regard/dtype.h"
#include "regard/tokenizer.h"

namespace regard::cli {

// The type that users name: also as "int8", "int4", "fp8" (e4m3), "fp8_e4m3" or "fp8_e5m2". Throws Error for others.
[[nodiscard]] DType parse_cache_dtype(std::string_view name);
// --kv-dtype T
void add_kv_dtype(CLI::App& command, std::string& kv_dtype);

// -m, --kv-dtype and --threads, which several commands have.
struct ModelOptions {
  std::string model;
  std::string kv_dtype = "f32";
  int threads = 0;  // 0: one per core

  void add_to(CLI::App& command);
};

// --threads N, 1 or more; one per core where it is not given.
void add_threads(CLI::App& command, int& threads);

// The ids of a list like "5,17,9", as --tokens takes them. Throws Error for an empty list and what is no id.
[[nodiscard]] std::vector<int32_t> parse_tokens(std::string_view list);
// The ids of a file with a JSON list of them. Throws Error if it can't be read or holds anything else.
[[nodiscard]] std::vector<int32_t> read_token_file(const std::string& path);

// Prints JSON on one line; bytes that are no UTF-8 become U+FFFD.
void print_json(const nlohmann::ordered_json& json);

// The largest memory that the process has held so far.
[[nodiscard]] int64_t peak_memory_bytes();

// The whole of standard input, or of a file. Throws Error if it can't be read.
[[nodiscard]] std::string read_standard_input();
[[nodiscard]] std::string read_text_file(const std::string& path);

// A bar on standard error that redraws itself, where that is a terminal; nothing elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(int64_t total, const char* unit = "tokens");
  ~ProgressBar();
  void show(int64_t done);

 private:
  int64_t total_;
  const char* unit_;
  bool terminal_;
  int shown_percent_ = -1;
};

}  // namespace regard::cli
