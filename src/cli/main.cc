#include <fmt/format.h>

#include <exception>
#include <new>

#include "cli/commands.h"
#include "regard/error.h"

namespace {

// Bad input of any kind ends here: one line, exit code 2.
int complain(const char* sentence) {
  std::string line = sentence;
  for (char& c : line)
    if (c == '\n' || c == '\r') c = ' ';
  fmt::print(stderr, "regard: {}\n", line);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Attention for LLM inference on CPUs: the same bits whatever the schedule.", "regard"};
  app.require_subcommand(1);
  app.footer("Each command has its own help, e.g.: regard generate --help");
  regard::cli::add_generate(app);
  regard::cli::add_score(app);
  regard::cli::add_inspect(app);
  regard::cli::add_attend(app);
  regard::cli::add_bench(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::RuntimeError& stopped) {
    return stopped.get_exit_code();
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return complain(error.what());
  } catch (const regard::Error& error) {
    return complain(error.what());
  } catch (const std::bad_alloc&) {
    return complain("there is not enough memory");
  } catch (const std::exception& error) {
    return complain(error.what());
  }
}
