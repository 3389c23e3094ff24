#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/bench/measure.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "kernels/targets.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

struct Options {
  std::string suite = "attention";
  std::string filter;
  std::string shape;
  std::string model;
  int threads = 0;
  bool json = false;
};

std::vector<BenchCase> chosen_cases(const Options& options) {
  if (!options.shape.empty()) return {attention_case(options.shape)};
  auto cases = bench_suite(options.suite, options.model);
  std::erase_if(cases, [&](const BenchCase& bench) { return bench.shape.find(options.filter) == std::string::npos; });
  require(!cases.empty(), "bench: no case of suite \"{}\" has \"{}\" in its name", options.suite, options.filter);
  return cases;
}

void run(const Options& options) {
  const auto cases = chosen_cases(options);
  Workspace workspace(options.threads);
  const auto limits = kernels::measure_machine(workspace.threads());
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  if (!options.json) {
    fmt::print("{} threads, {}: {:.0f} GFLOP/s f32 multiply-add, {:.1f} GB/s reading\n", workspace.threads().count(),
               kernels::target_name(), limits.fma_gflops, limits.read_gbs);
    fmt::print("{:<46} {:>12} {:>10} {:>8} {:>10}\n", "case", "milliseconds", "GFLOP/s", "GB/s", "% of limit");
  }
  for (const BenchCase& bench : cases) {
    const BenchResult result = measure(bench, limits, workspace);
    if (options.json) {
      results.push_back({{"shape", result.shape},
                         {"milliseconds", result.milliseconds},
                         {"gflops", result.gflops},
                         {"gbs", result.gbs},
                         {"percent_of_limit", result.percent_of_limit}});
      continue;
    }
    fmt::print("{:<46} {:>12.3f} {:>10.1f} {:>8.2f} {:>10.1f}\n", result.shape, result.milliseconds, result.gflops,
               result.gbs, result.percent_of_limit);
    std::fflush(stdout);
  }
  if (options.json)
    print_json({{"machine",
                 {{"fma_gflops", limits.fma_gflops},
                  {"read_gbs", limits.read_gbs},
                  {"threads", workspace.threads().count()},
                  {"target", kernels::target_name()}}},
                {"cases", results}});
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("bench", "Measure the machine, then attention on it");
  auto* suite = command.add_option("--suite", options->suite, "attention (default), layer or decoder")
                    ->check(CLI::IsMember({"attention", "layer", "decoder"}));
  command.add_option("--filter", options->filter, "Only cases with this text in their name");
  command
      .add_option("--shape", options->shape,
                  "One attention case: prefill or decode, dtype, then b (batch), h (query heads), kv (KV heads), d "
                  "(head_dim), s or l (tokens); perhaps v (v_head_dim), w (window), c (chunk), sink")
      ->excludes(suite);
  command.add_option("-m,--model", options->model,
                     "Checkpoint for the decoder suite (default: a random model of SmolLM2-135M's shape)");
  add_threads(command, options->threads);
  command.add_flag("--json", options->json, "Print one JSON object");
  command.footer(
      "Percent of limit: of the roofline, the larger of operations / multiply-add peak and bytes / read bandwidth.\n"
      "Examples:\n"
      "  regard bench --filter decode\n"
      "  regard bench --shape prefill:bf16:b1:h64:kv8:d64:s4096:w128:sink\n"
      "  regard bench --suite decoder -m model.gguf --json");
  command.callback([options] { run(*options); });
}

}  // namespace regard::cli
