#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "regard/generation.h"
#include "regard/tokenizer.h"

namespace regard::cli {

// Calls `read` with each object of a file of JSON lines ("-": standard input) and with its line; `where` is what
// messages call that line. Blank lines are skipped. Throws Error for a line that is no JSON object, or has more than
// `most_bytes`.
void for_each_json_line(
    const std::string& path, size_t most_bytes,
    const std::function<void(const nlohmann::json& object, std::string_view line, const std::string& where)>& read);

// A line of `regard batch`'s input.
struct BatchRequest {
  std::string id;
  std::string prompt;
  std::vector<ChatMessage> messages;  // instead of a prompt; empty if there is one
  GenerationRequest settings;         // without the prompt's tokens
  std::string error;                  // why it can't run; empty if it can
};

// All requests of a file ("-": standard input). Throws Error, naming the line, for what is no request: no JSON object,
// no id that is a string, an id that comes twice, or a key that does not exist. A field that is wrong is an error of
// that request alone; a field that is null is as if it were not there.
[[nodiscard]] std::vector<BatchRequest> read_batch_requests(const std::string& path);

}  // namespace regard::cli
