#include <fmt/format.h>

#include <cctype>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>

#include "cli/commands.h"
#include "cli/help.h"
#include "cli/lost_pages.h"
#include "cli/ranks.h"
#include "cli/standard_streams.h"
#include "kernels/targets.h"
#include "regard/error.h"

namespace {

// Bad input of any kind ends here: one line, exit code 2.
int complain(const char* sentence) {
  std::string line = sentence;
  for (char& c : line)
    if ((c >= 0 && c < ' ') || c == '\x7F') c = ' ';
  return regard::cli::end_with("regard: " + line, 2);
}

// CLI11 reads 010 as 8, and an empty value as 0.
std::string decimal(const std::string& text) {
  if (text.empty()) return "the value is empty, expected a number";
  const size_t first = text.find_first_not_of("+-");
  const bool prefixed = first != std::string::npos && text[first] == '0' && first + 1 < text.size() &&
                        std::isalnum(static_cast<unsigned char>(text[first + 1])) != 0;
  return prefixed ? fmt::format("{} begins with a 0, expected a decimal number", text) : "";
}

// Before any other check of a number's value.
void expect_decimal_numbers(CLI::App& app) {
  const CLI::Validator check([](std::string& text) { return decimal(text); }, "");
  for (CLI::App* command : app.get_subcommands({}))
    for (CLI::Option* option : command->get_options())
      for (const char* type : {"INT", "UINT", "FLOAT"})
        if (option->get_type_name().starts_with(type)) option->transform(check);
}

int print_help(const CLI::App& app, const CLI::Success& help) {
  const int exit_code = app.exit(help);
  try {
    regard::cli::flush_output();
  } catch (const regard::Error& error) {
    return complain(error.what());
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  regard::cli::prepare_standard_streams();
  regard::cli::explain_lost_pages();
  CLI::App app{"Attention for LLM inference on CPUs: the same bits whatever the schedule.", "regard"};
  app.formatter(std::make_shared<regard::cli::HelpFormatter>());
  app.set_version_flag("--version", "regard " REGARD_VERSION, "Print the version and exit");
  // None is refused below, since CLI11 would blame an unknown one on a missing one.
  app.require_subcommand(0, 1);
  app.footer(
      "Each command has its own help, e.g.: regard generate --help\n"
      "REGARD_TARGET in the environment chooses the instruction set; regard show-config lists those there are.");
  regard::cli::add_generate(app);
  regard::cli::add_batch(app);
  regard::cli::add_score(app);
  regard::cli::add_logits(app);
  regard::cli::add_verify(app);
  regard::cli::add_inspect(app);
  regard::cli::add_attend(app);
  regard::cli::add_shard(app);
  regard::cli::add_bench(app);
  regard::cli::add_plan(app);
  regard::cli::add_show_config(app);
  expect_decimal_numbers(app);
  try {
    const char* target = std::getenv("REGARD_TARGET");
    if (target != nullptr && *target != '\0') regard::kernels::choose_target(target);
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) return complain("a subcommand is required; regard --help lists them");
    regard::cli::flush_output();
    return 0;
  } catch (const CLI::RuntimeError& stopped) {
    return stopped.get_exit_code();
  } catch (const CLI::Success& help) {
    return print_help(app, help);
  } catch (const CLI::ParseError& error) {
    // An unknown option is named before one that it was perhaps meant to be, and that is missing now.
    const auto unknown = app.remaining(true);
    return complain(unknown.empty() ? error.what() : CLI::ExtrasError(unknown).what());
  } catch (const regard::Error& error) {
    return complain(error.what());
  } catch (const std::bad_alloc&) {
    return complain("there is not enough memory");
  } catch (const std::exception& error) {
    return complain(error.what());
  }
}
