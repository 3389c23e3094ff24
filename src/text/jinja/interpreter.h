#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "text/jinja/value.h"

namespace regard::jinja {

// Templates are small: the longest known have some 100 KB.
constexpr size_t kMostTemplateBytes = 1'000'000;
constexpr size_t kMostOutputBytes = 16'000'000;

// What the template makes of the variables, as Python's Jinja2 does with trim_blocks and lstrip_blocks. Throws Error
// with the line for what is not understood, what goes wrong or costs too much, and what raise_exception says. `now` is
// what strftime_now tells, as local time.
[[nodiscard]] std::string render(std::string_view source, const Value::Map& variables,
                                 std::chrono::system_clock::time_point now);

}  // namespace regard::jinja
