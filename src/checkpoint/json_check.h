#pragma once

#include <string_view>

namespace regard {

// What untrusted JSON has to keep to before it is parsed into values, which for deep nesting take minutes and
// gigabytes.
struct JsonLimits {
  int depth = 0;               // objects and lists inside each other, at most
  bool refuses_twice = false;  // of two equal keys of an object the parser would keep the last in silence
};

// Reads the text once, in linear time, and keeps only the keys of the objects that are open. False if it is no JSON.
// Throws Error for what goes beyond the limits; `where` begins the message.
[[nodiscard]] bool check_json(std::string_view text, const JsonLimits& limits, std::string_view where);

}  // namespace regard
