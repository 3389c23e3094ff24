#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/child_process.h"
#include "cli/model_folder.h"

// What the tests of `regard batch` share.
namespace regard::test {

using Json = nlohmann::ordered_json;

// A model whose texts never end by themselves.
extern const TinyLlama kEndless;

std::vector<std::string> lines_of(const std::string& text);

// A folder with a model, requests and results.
struct BatchFolder : ModelFolder {
  explicit BatchFolder(const std::string& requests, const TinyLlama& model = kEndless)
      : ModelFolder(model), input(write("requests.jsonl", requests)), output(file("results.jsonl")) {}

  [[nodiscard]] std::vector<std::string> command(std::vector<std::string> options = {}) const;
  // Runs to the end and returns the results.
  std::string run(const std::vector<std::string>& options = {});
  [[nodiscard]] std::vector<Json> results();

  const std::string input;
  const std::string output;
  Finished finished;
};

// The line of a request.
std::string request(const std::string& id, const std::string& prompt, const Json& more = Json::object());

// Requests that keep one thread busy for some seconds.
std::string long_work();

// The whole lines that the results file has by now; fails the test if there is a part of one.
std::vector<std::string> written_lines(const BatchFolder& folder);

// Waits until the results file has more lines than before.
void wait_for_lines(const BatchFolder& folder, size_t before);

// Some of all lines, in their order.
void expect_some_of(const std::vector<std::string>& lines, const std::vector<std::string>& all);

}  // namespace regard::test
