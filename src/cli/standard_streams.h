#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace regard::cli {

// Readies the three standard streams at the start of a process: the numbers of closed ones are taken, so that no file
// that is opened later gets one of them and is written into, and a pipe without a reader is an error of the write, not
// the end of the process.
void prepare_standard_streams();

// Prints to standard error. Where that is closed, full or without a reader, the text is lost and nothing else happens.
void say_text(std::string_view text);
template <class... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  say_text(fmt::format(format, std::forward<Args>(args)...));
}

// Writes what was printed to standard output. Throws Error, with the reason, if not all of it can be written.
void flush_output();

}  // namespace regard::cli
