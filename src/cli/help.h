#pragma once

#include <CLI/CLI.hpp>

namespace regard::cli {

// Help as wide as the terminal (COLUMNS where standard output is none, or 80): an option's name and the kind of its
// value at the left, sentences at the right. Lines of footers that begin with a space are kept as they are.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter();

  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_subcommand(const CLI::App* command) const override;
  std::string make_description(const CLI::App* app) const override;
  std::string make_footer(const CLI::App* app) const override;

 private:
  size_t width_;
};

}  // namespace regard::cli
