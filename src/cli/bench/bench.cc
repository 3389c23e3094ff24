#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/bench/measure.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/ranks.h"
#include "kernels/targets.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

struct Options {
  std::string suite = "attention";
  std::string filter;
  std::vector<std::string> shapes;
  std::string model;
  std::string kv_dtype = "f32";
  int threads = 0;
  bool bf16_products = false;
  bool json = false;
};

std::vector<BenchCase> chosen_cases(const Options& options) {
  if (!options.shapes.empty()) {
    std::vector<BenchCase> cases;
    for (const std::string& shape : options.shapes) cases.push_back(attention_case(shape));
    return cases;
  }
  auto cases = bench_suite(options.suite, options.model, parse_cache_dtype(options.kv_dtype));
  std::erase_if(cases, [&](const BenchCase& bench) { return bench.shape.find(options.filter) == std::string::npos; });
  require(!cases.empty(), "bench: no case of suite \"{}\" has \"{}\" in its name", options.suite, options.filter);
  return cases;
}

void run(const Options& options) {
  require(options.model.empty() || (options.shapes.empty() && options.suite == "decoder"),
          "--model is given, but only the suite decoder reads a model; expected --suite decoder");
  const auto cases = chosen_cases(options);
  Workspace workspace(WorkspaceOptions{.threads = options.threads, .bf16_products = options.bf16_products});
  kernels::MachineProbe probe(workspace.threads());
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  if (!options.json)
    fmt::print("{} threads, {}\n{:<46} {:>12} {:>9} {:>7} {:>11} {:>7} {:>11}\n", workspace.threads().count(),
               kernels::target_name(), "case", "milliseconds", "GFLOP/s", "of", "GB/s", "of", "% of limit");
  for (const BenchCase& bench : cases) {
    const BenchResult result = measure(bench, probe, workspace);
    if (options.json) {
      results.push_back({{"shape", result.shape},
                         {"milliseconds", result.milliseconds},
                         {"gflops", result.gflops},
                         {"gbs", result.gbs},
                         {"fma_gflops", result.limits.fma_gflops},
                         {"read_gbs", result.limits.read_gbs},
                         {"percent_of_limit", result.percent_of_limit}});
      continue;
    }
    fmt::print("{:<46} {:>12.3f} {:>9.1f} {:>7.0f} {:>11.2f} {:>7.1f} {:>11.1f}\n", result.shape, result.milliseconds,
               result.gflops, result.limits.fma_gflops, result.gbs, result.limits.read_gbs, result.percent_of_limit);
    std::fflush(stdout);
  }
  if (options.json) {
    const auto limits = probe.measure();
    print_json({{"machine",
                 {{"fma_gflops", limits.fma_gflops},
                  {"read_gbs", limits.read_gbs},
                  {"threads", workspace.threads().count()},
                  {"target", kernels::target_name()}}},
                {"cases", results}});
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("bench", "Measure the machine, then attention on it");
  auto* suite = command.add_option("--suite", options->suite, "The cases to measure (default: attention)")
                    ->check(CLI::IsMember({"attention", "projection", "layer", "decoder"}));
  auto* filter = command.add_option("--filter", options->filter, "Only cases with this text in their name");
  command
      .add_option("--shape", options->shapes,
                  "One attention case: prefill or decode, dtype, then b (batch), h (query heads), kv (KV heads), d "
                  "(head_dim), s or l (tokens); perhaps v (v_head_dim), w (window), c (chunk), sink, p (page size of a "
                  "paged cache), scattered (its pages in random order)")
      ->excludes(suite)
      ->excludes(filter);
  auto& model =
      *command.add_option("-m,--model", options->model,
                          "Checkpoint for the decoder suite (default: a random model of SmolLM2-135M's shape)");
  add_kv_dtype(command, options->kv_dtype);
  add_threads(command, options->threads);
  command.add_flag("--bf16-products", options->bf16_products,
                   "Lets bf16 weights and caches be multiplied by numbers rounded to bf16, where the machine can");
  command.add_flag("--json", options->json, "Print one JSON object");
  command.footer(
      "Percent of limit: of the roofline, the larger of operations / multiply-add peak and bytes / read bandwidth.\n"
      "Examples:\n"
      "  regard bench --filter decode\n"
      "  regard bench --shape prefill:bf16:b1:h64:kv8:d64:s4096:w128:sink\n"
      "  regard bench --suite decoder -m model.gguf --json");
  CommandRanks::run_alone(command, [options, &model] {
    require(model.count() == 0 || !options->model.empty(), "--model is empty, expected a checkpoint");
    run(*options);
  });
}

}  // namespace regard::cli
