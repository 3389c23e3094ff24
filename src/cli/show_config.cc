#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>

#include "cli/build_id.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/ranks.h"
#include "kernels/targets.h"
#include "regard/threads.h"

namespace regard::cli {
namespace {

using Json = nlohmann::ordered_json;

#ifdef __clang__
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif
#ifdef REGARD_WITH_MPI
constexpr bool kWithMpi = true;
#else
constexpr bool kWithMpi = false;
#endif

// Where ./run keeps the models that it fetches; scripts/setup.sh says the same.
std::optional<std::string> cache_folder() {
  const auto set = [](const char* name) { return std::getenv(name) != nullptr && *std::getenv(name) != '\0'; };
  if (set("REGARD_CACHE")) return std::getenv("REGARD_CACHE");
  if (set("XDG_CACHE_HOME")) return std::filesystem::path(std::getenv("XDG_CACHE_HOME")) / "regard";
  if (set("HOME")) return std::filesystem::path(std::getenv("HOME")) / ".cache" / "regard";
  return std::nullopt;
}

void run(bool json) {
  const auto cache = cache_folder();
  const auto compiled = kernels::compiled_targets();
  const auto available = kernels::supported_targets();
  const int threads = Threads().count();
  const auto cores = static_cast<int64_t>(sysconf(_SC_NPROCESSORS_ONLN));
  if (json) {
    print_json({{"version", REGARD_VERSION},
                {"build_type", REGARD_BUILD_TYPE},
                {"build_id", build_id()},
                {"compiler", kCompiler},
                {"mpi", kWithMpi},
                {"compiled_targets", compiled},
                {"available_targets", available},
                {"target", kernels::target_name()},
                {"threads", threads},
                {"cores", cores},
                {"cache_folder", cache ? Json(*cache) : Json()}});
    return;
  }
  fmt::print("version   {}\n", REGARD_VERSION);
  fmt::print("build     {}, {}, {} MPI; id {}\n", REGARD_BUILD_TYPE, kCompiler, kWithMpi ? "with" : "without",
             build_id());
  fmt::print("targets   {} (compiled); {} (on this machine)\n", fmt::join(compiled, ", "), fmt::join(available, ", "));
  fmt::print("target    {} (REGARD_TARGET in the environment chooses another)\n", kernels::target_name());
  fmt::print("threads   {} (of {} cores; --threads chooses another number)\n", threads, cores);
  fmt::print("cache     {}\n", cache.value_or("none: REGARD_CACHE, XDG_CACHE_HOME and HOME are not set"));
}

}  // namespace

void add_show_config(CLI::App& app) {
  const auto json = std::make_shared<bool>(false);
  CLI::App& command = *app.add_subcommand("show-config", "Version, build, instruction sets, threads and folders");
  command.add_flag("--json", *json, "Print one JSON object");
  command.footer(
      "Targets are instruction sets. Where a machine has several with fused multiply-add, all give the same bits.\n"
      "Examples:\n"
      "  regard show-config\n"
      "  REGARD_TARGET=avx2 regard show-config --json");
  CommandRanks::run_alone(command, [json] { run(*json); });
}

}  // namespace regard::cli
