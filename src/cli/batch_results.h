#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cli/batch_requests.h"
#include "regard/checkpoint.h"
#include "regard/generation.h"
#include "regard/tokenizer.h"
#include "tensor/file_lock.h"

namespace regard::cli {

// What makes the results.
struct ResultSource {
  const Checkpoint& checkpoint;
  const Tokenizer& tokenizer;
  std::string name;  // the model's digest, and the options that its numbers depend on
};

// The tokens of a request's prompt or messages. Throws Error for what they can't be made of.
[[nodiscard]] std::vector<int32_t> prompt_tokens(const BatchRequest& request, const ResultSource& source);

// A line of `regard batch`'s output, without its end. Where the request did not fail, its digest covers the source, the
// request's settings and all else in the line.
[[nodiscard]] std::string result_line(const BatchRequest& request, std::span<const int32_t> prompt,
                                      const GeneratedText& text, const ResultSource& source);

// The lines of an earlier output, each at the place of its request, byte for byte; empty where there is none, where it
// tells of an error, or if there is no such file. Throws Error for a line that is no result with the id of a request.
[[nodiscard]] std::vector<std::string> read_batch_results(const std::string& path,
                                                          std::span<const BatchRequest> requests);

// Throws Error where such a line belongs to another prompt, or to other tokens of it, or where its digest says that it
// was made by another source, with other settings, or changed.
void check_results(std::span<const std::string> lines, std::span<const BatchRequest> requests,
                   const ResultSource& source);

// The right to write to an output file, which is made if it is not there. Throws Error if the file can't be written, if
// another program has the lock, and, unless it is `resumed`, if it is not empty.
[[nodiscard]] FileLock lock_output(const std::string& path, bool resumed);

// The output file: at any time whole lines, of the requests that are finished, in their order.
class ResultsFile {
 public:
  // `lines`: one a request, empty for those to come.
  ResultsFile(std::string path, std::vector<std::string> lines, FileLock lock)
      : path_(std::move(path)), lines_(std::move(lines)), lock_(std::move(lock)) {}

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
  FileLock lock_;         // of the file that has the name now
  bool changed_ = false;  // since the last write
  std::chrono::steady_clock::time_point due_;
};

}  // namespace regard::cli
