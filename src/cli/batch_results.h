#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cli/batch_requests.h"
#include "regard/generation.h"
#include "regard/tokenizer.h"

namespace regard::cli {

// A line of `regard batch`'s output, without its end.
[[nodiscard]] std::string result_line(const BatchRequest& request, std::span<const int32_t> prompt_tokens,
                                      const GeneratedText& text);

// The lines of an earlier output, each at the place of its request, byte for byte; empty where there is none, where it
// tells of an error, or if there is no such file. Throws Error for a line that is no result with the id of a request.
[[nodiscard]] std::vector<std::string> read_batch_results(const std::string& path,
                                                          std::span<const BatchRequest> requests);

// Throws Error where such a line belongs to another prompt, or to other tokens of it.
void check_prompts(std::span<const std::string> lines, std::span<const BatchRequest> requests,
                   const Tokenizer& tokenizer);

// The output file: at any time whole lines, of the requests that are finished, in their order.
class ResultsFile {
 public:
  // `lines`: one a request, empty for those to come.
  ResultsFile(std::string path, std::vector<std::string> lines) : path_(std::move(path)), lines_(std::move(lines)) {}

  void set(size_t request, std::string line) {
    lines_[request] = std::move(line);
    changed_ = true;
  }
  // Replaces the file. Throws Error if it can't be written; then it is as it was.
  void write();
  // The same, but only where lines have come and the last time is long enough ago for this to cost little.
  void write_now_and_then();

 private:
  std::string path_;
  std::vector<std::string> lines_;
  bool changed_ = false;  // since the last write
  std::chrono::steady_clock::time_point due_;
};

}  // namespace regard::cli
