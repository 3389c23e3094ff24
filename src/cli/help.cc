#include "cli/help.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace regard::cli {
namespace {

constexpr size_t kLeast = 40;  // narrower columns hold no sentence
constexpr size_t kUsual = 80;
constexpr size_t kIndent = 2;
constexpr size_t kTextColumn = 26;

size_t terminal_width() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  const char* columns = std::getenv("COLUMNS");
  if (columns == nullptr) return kUsual;
  size_t width = 0;
  const std::string_view text(columns);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), width);
  return error == std::errc() && end == text.data() + text.size() && width > 0 ? width : kUsual;
}

// Appends words, with line breaks before those that would pass the width; lines after the first one are indented.
void append_wrapped(std::string_view text, size_t column, size_t indent, size_t width, std::string& out) {
  bool begun = false;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(std::min(text.size(), end + 1));
    if (begun && column + 1 + word.size() > width) {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (begun) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    begun = true;
  }
  out += '\n';
}

std::string wrapped_lines(std::string_view text, size_t width) {
  std::string out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(text.size(), end + 1));
    if (line.starts_with(' '))
      out += fmt::format("{}\n", line);
    else
      append_wrapped(line, 0, 0, width, out);
  }
  return out;
}

std::string entry(const std::string& name, const std::string& text, size_t width) {
  std::string out = std::string(kIndent, ' ') + name;
  if (out.size() + kIndent > kTextColumn) out += '\n';
  const size_t column = out.ends_with('\n') ? 0 : out.size();
  out += std::string(kTextColumn - column, ' ');
  append_wrapped(text, kTextColumn, kTextColumn, width, out);
  return out;
}

// What CLI11 says of a value is its type and behind a colon what validators say of themselves: a list of choices is
// worth reading, "INT in [1 - 1024]" is not.
struct Value {
  std::string kind;
  std::string choices;
};

Value value_of(const CLI::Option& option) {
  const std::string text = option.get_type_size() == 0 ? "" : option.get_type_name();
  const size_t colon = text.find(':');
  if (colon == std::string::npos) return {.kind = text, .choices = ""};
  const bool is_list = text.substr(colon + 1).starts_with('{');
  std::string choices;
  if (is_list)
    for (const char c : text.substr(colon + 2, text.size() - colon - 3)) choices += c == ',' ? ", " : std::string(1, c);
  return {.kind = text.substr(0, colon), .choices = choices};
}

}  // namespace

HelpFormatter::HelpFormatter() : width_(std::max(terminal_width(), kLeast)) {}

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  const Value value = value_of(*option);
  std::string name = make_option_name(option, is_positional);
  if (!value.kind.empty()) name += " " + value.kind;
  std::string text = option->get_description();
  if (!value.choices.empty()) text += ": " + value.choices;
  if (option->get_required()) text += " (required)";
  for (const CLI::Option* other : option->get_excludes()) text += fmt::format(" (not with {})", other->get_name());
  return entry(name, text, width_);
}

std::string HelpFormatter::make_subcommand(const CLI::App* command) const {
  return entry(command->get_name(), command->get_description(), width_);
}

std::string HelpFormatter::make_description(const CLI::App* app) const {
  return wrapped_lines(app->get_description(), width_);
}

std::string HelpFormatter::make_footer(const CLI::App* app) const { return wrapped_lines(app->get_footer(), width_); }

}  // namespace regard::cli
