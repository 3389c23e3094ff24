#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <new>

#include "cli/commands.h"
#include "cli/help.h"
#include "cli/ranks.h"
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

}  // namespace

int main(int argc, char** argv) {
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
  try {
    const char* target = std::getenv("REGARD_TARGET");
    if (target != nullptr && *target != '\0') regard::kernels::choose_target(target);
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) return complain("a subcommand is required; regard --help lists them");
    std::cout.flush();
    if (std::fflush(stdout) != 0 || !std::cout.good()) return complain("standard output can't be written");
    return 0;
  } catch (const CLI::RuntimeError& stopped) {
    return stopped.get_exit_code();
  } catch (const CLI::Success& help) {
    return app.exit(help);
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
