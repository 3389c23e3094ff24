#include "planning/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/ranks.h"
#include "regard/mask.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

using Json = nlohmann::ordered_json;
using Row = std::vector<std::string>;

struct Options {
  std::string model;
  int64_t ranks = 0;
  Workload workload;
  std::string kv_dtype = "f32";
  double weight_bytes = 0;  // 0: what the model says
  double memory = 0;        // GB; 0: no limit
  // In the units of the command line.
  double teraflops = 3;
  double bandwidth = 200;
  double link = 25;
  double latency = 2;
  double per_message = 0.3;
  int64_t ranks_per_host = 1;
  double host_link = 40;
  double host_latency = 1;
  bool all = false;
  bool json = false;
};

ModelSpec read_model(const Options& options) {
  const std::filesystem::path path = options.model;
  const auto config = std::filesystem::is_directory(path) ? path / "config.json" : path;
  const bool is_config = config.extension() == ".json" && !config.string().ends_with(".index.json");
  ModelSpec model = is_config && std::filesystem::exists(config)
                        ? ModelSpec::from_config_json(read_text_file(config.string()), config.string())
                        : ModelSpec::from(Checkpoint::open(path));
  if (options.weight_bytes > 0)
    model.bytes_per_weight = {
        .attention = options.weight_bytes, .mlp = options.weight_bytes, .embedding = options.weight_bytes};
  return model;
}

RankSpeed speed_of(const Options& options) {
  return {.flops = options.teraflops * 1e12,
          .bandwidth = options.bandwidth * 1e9,
          .link = options.link * 1e9,
          .latency = options.latency * 1e-6,
          .per_message = options.per_message * 1e-6,
          .ranks_per_host = options.ranks_per_host,
          .host_link = options.host_link * 1e9,
          .host_latency = options.host_latency * 1e-6};
}

std::string with_unit(double value, std::initializer_list<std::pair<double, const char*>> units) {
  if (value == 0) return "0";
  auto unit = units.begin();
  while (std::next(unit) != units.end() && value < 0.9995 * unit->first) ++unit;
  const double scaled = value / unit->first;
  return fmt::format("{:.{}f} {}", scaled, scaled < 9.995 ? 2 : scaled < 99.95 ? 1 : 0, unit->second);
}

std::string bytes_text(double bytes) { return with_unit(bytes, {{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}}); }
std::string time_text(double seconds) { return with_unit(seconds, {{1, "s"}, {1e-3, "ms"}, {1e-6, "us"}}); }

// "CP 8 x TP 4, SP": the rows of a stage, the ranks of each, and what else is switched on.
std::string prefill_name(const ParallelConfig& config) {
  std::string name = fmt::format("TP {}", config.tp_degree / config.cp_degree);
  if (config.cp_degree > 1) name = fmt::format("CP {} x ", config.cp_degree) + name;
  if (config.sequence_parallel_enabled) name += ", SP";
  if (config.context_split == ContextSplit::strided) name += ", strided";
  return name;
}

// Whether the rows of decode have results to bring together.
bool dispatches(const ParallelConfig& config) {
  return config.attention_dp_degree > 1 && !config.sequence_parallel_enabled;
}

std::string decode_name(const ParallelConfig& config) {
  std::string name = fmt::format("TP {}", config.tp_degree / config.attention_dp_degree);
  if (config.attention_dp_degree > 1) name = fmt::format("DP {} x ", config.attention_dp_degree) + name;
  if (config.sequence_parallel_enabled) name += ", SP";
  if (config.flash_decoding_enabled) name += ", flash";
  if (dispatches(config)) name += fmt::format(", {}", RankOptions::name_of(config.output_dispatch));
  return name;
}

// How to start the command over these ranks: consecutive ones share a host, as the model takes it.
std::string command_line(const ParallelConfig& config, const Options& options) {
  if (config.tp_degree == 1) return "regard generate -m MODEL";
  return fmt::format("mpirun -n {} --map-by ppr:{}:node --bind-to {} regard generate -m MODEL{}", config.tp_degree,
                     options.ranks_per_host, options.ranks_per_host == 1 ? "none" : "socket",
                     RankOptions::flags_of(config));
}

// Text columns come first and stand left, numbers right.
void print_table(const std::vector<Row>& rows, size_t text_columns) {
  std::vector<size_t> widths(rows.front().size());
  for (const Row& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  for (const Row& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i)
      line +=
          i < text_columns ? fmt::format("  {:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
    fmt::print("{}\n", line);
  }
}

Row cost_row(const std::string& name, const StageCost& cost) {
  return {name,
          time_text(cost.seconds()),
          time_text(cost.compute),
          time_text(cost.link),
          time_text(cost.latency),
          time_text(cost.rest),
          bytes_text(cost.layer_bytes),
          bytes_text(cost.step_bytes)};
}

// The plans that differ in one stage, the fastest first; of those with one name the fastest.
std::vector<const Plan*> by_stage(const std::vector<Plan>& all, const std::function<std::string(const Plan&)>& name,
                                  StageCost Plan::*stage) {
  std::vector<const Plan*> sorted;
  for (const Plan& plan : all) sorted.push_back(&plan);
  std::ranges::stable_sort(sorted, {}, [&](const Plan* plan) { return (plan->*stage).seconds(); });
  std::vector<const Plan*> different;
  std::set<std::string> names;
  for (const Plan* plan : sorted)
    if (names.insert(name(*plan)).second) different.push_back(plan);
  return different;
}

std::string name_in_prefill(const Plan& plan) { return prefill_name(plan.config); }
std::string name_in_decode(const Plan& plan) { return decode_name(plan.config); }

size_t shown_of(size_t count, const Options& options) {
  constexpr size_t kShown = 10;
  return options.all ? count : std::min(count, kShown);
}

void print_rest(size_t count, size_t shown) {
  if (shown < count) fmt::print("  and {} more, which --all shows\n", count - shown);
}

void print_stage(const std::vector<const Plan*>& different, const std::function<std::string(const Plan&)>& name,
                 StageCost Plan::*stage, const Options& options) {
  std::vector<Row> rows = {{"", "time", "compute", "link", "rounds", "rest", "sent/attention", "sent"}};
  const size_t shown = shown_of(different.size(), options);
  for (size_t i = 0; i < shown; ++i) rows.push_back(cost_row(name(*different[i]), different[i]->*stage));
  print_table(rows, 1);
  print_rest(different.size(), shown);
}

double tokens_per_second(const Plan& plan, const Workload& workload) {
  return static_cast<double>(workload.sequences) / plan.decode.seconds();
}

void print_plans(const std::vector<Plan>& all, const Options& options) {
  std::vector<Row> rows = {
      {"prefill", "decode", "weights", "KV cache", "memory", "a prompt", "a step", "tokens/s", "everything"}};
  const size_t shown = shown_of(all.size(), options);
  for (const Plan& plan : std::span(all).first(shown))
    rows.push_back({prefill_name(plan.config), decode_name(plan.config),
                    bytes_text(plan.memory.attention_weights + plan.memory.other_weights),
                    bytes_text(plan.memory.cache), bytes_text(plan.memory.total()), time_text(plan.prefill.seconds()),
                    time_text(plan.decode.seconds()), fmt::format("{:.0f}", tokens_per_second(plan, options.workload)),
                    time_text(plan.seconds)});
  print_table(rows, 2);
  print_rest(all.size(), shown);
}

struct Winner {
  const char* question;
  const char* key;  // in JSON
  const Plan* plan;
  std::string answer;
};

std::vector<Winner> winners(const std::vector<Plan>& all) {
  const auto least = [&](const auto& value) { return &*std::ranges::min_element(all, {}, value); };
  const Plan* prompt = least([](const Plan& plan) { return plan.prefill.seconds(); });
  const Plan* step = least([](const Plan& plan) { return plan.decode.seconds(); });
  const Plan* memory = least([](const Plan& plan) { return plan.memory.total(); });
  const Plan* everything = &all.front();
  const auto both = [](const Plan* plan) {
    return fmt::format("{} for prefill and {} for decode", prefill_name(plan->config), decode_name(plan->config));
  };
  return {{"The first token soonest", "prefill", prompt,
           fmt::format("{}: {} for a prompt", prefill_name(prompt->config), time_text(prompt->prefill.seconds()))},
          {"Most tokens a second", "decode", step,
           fmt::format("{}: {} for a step", decode_name(step->config), time_text(step->decode.seconds()))},
          {"Least memory", "memory", memory,
           fmt::format("{}: {} a rank", both(memory), bytes_text(memory->memory.total()))},
          {"Everything soonest", "everything", everything,
           fmt::format("{}: {}", both(everything), time_text(everything->seconds))}};
}

std::string mask_text(const Mask& mask) {
  const std::string limits = mask.limits();
  return limits.empty() ? limits : ", " + limits;
}

std::string mlp_text(const std::variant<DenseMlp, ExpertsMlp>& mlp) {
  if (const auto* dense = std::get_if<DenseMlp>(&mlp)) return fmt::format("{}", dense->width);
  const auto& experts = std::get<ExpertsMlp>(mlp);
  return fmt::format("{}, {} of {} experts", experts.expert.width, experts.experts_per_token, experts.experts);
}

void print_model(const ModelSpec& model, const Options& options) {
  fmt::print("{}: {}, {} layers of width {}, {} of weights\n", options.model, printable(model.family),
             model.layers.size(), model.hidden_size, bytes_text(model.weight_bytes()));
  for (const auto& [layer, count] : model.equal_layers()) {
    const AttentionConfig& a = layer->attention;
    fmt::print("  {} x {} query and {} KV heads of {}{}; MLP {}\n", count, a.num_attention_heads, a.num_key_value_heads,
               a.head_dim, mask_text(Mask::of(a)), mlp_text(layer->mlp));
  }
  fmt::print(
      "{} ranks, each with {:g} TFLOP/s, {:g} GB/s from memory, {:g} GB/s to others, {:g} us a round and {:g} us "
      "a message\n",
      options.ranks, options.teraflops, options.bandwidth, options.link, options.latency, options.per_message);
  if (options.ranks_per_host > 1)
    fmt::print("{} ranks on a host: among these {:g} GB/s and {:g} us a round\n", options.ranks_per_host,
               options.host_link, options.host_latency);
}

void print_text(const ModelSpec& model, const std::vector<Plan>& all, const Options& options) {
  const Workload& workload = options.workload;
  print_model(model, options);
  fmt::print("\nPrefill of one prompt of {} tokens\n", workload.prompt);
  print_stage(by_stage(all, name_in_prefill, &Plan::prefill), name_in_prefill, &Plan::prefill, options);
  fmt::print("\nA decode step of {} sequence{} of {} tokens\n", workload.sequences, workload.sequences == 1 ? "" : "s",
             workload.context);
  print_stage(by_stage(all, name_in_decode, &Plan::decode), name_in_decode, &Plan::decode, options);
  fmt::print("\nBoth; everything is {} prompt{} one after the other and {} steps\n", workload.sequences,
             workload.sequences == 1 ? "" : "s", workload.output);
  print_plans(all, options);
  fmt::print("\n");
  for (const Winner& winner : winners(all))
    fmt::print("{:<24} {}\n  {}\n", std::string(winner.question) + ":", winner.answer,
               command_line(winner.plan->config, options));
  fmt::print(
      "\nCP, DP: rows of ranks that divide a prompt's tokens, or the sequences; TP: ranks of a row; SP: sequence "
      "parallel;\nflash: ranks with the same KV head share its tokens. Rest is MLPs and the output head with their "
      "exchanges.\nSent is what the busiest rank sends in an attention layer, and in all. All of it is a model, not a "
      "measurement:\ndocs/scaling.md.\n");
}

Json cost_json(const StageCost& cost) {
  return {{"seconds", cost.seconds()},    {"compute_seconds", cost.compute},
          {"link_seconds", cost.link},    {"latency_seconds", cost.latency},
          {"rest_seconds", cost.rest},    {"sent_bytes_per_layer", cost.layer_bytes},
          {"sent_bytes", cost.step_bytes}};
}

Json plan_json(const Plan& plan, const Options& options) {
  const ParallelConfig& config = plan.config;
  return {{"prefill_name", prefill_name(config)},
          {"decode_name", decode_name(config)},
          {"tp_degree", config.tp_degree},
          {"cp_degree", config.cp_degree},
          {"attention_dp_degree", config.attention_dp_degree},
          {"sequence_parallel_enabled", config.sequence_parallel_enabled},
          {"flash_decoding_enabled", config.flash_decoding_enabled},
          {"context_split", config.context_split == ContextSplit::strided ? "strided" : "contiguous"},
          {"output_dispatch", RankOptions::name_of(config.output_dispatch)},
          {"command", command_line(config, options)},
          {"memory",
           {{"attention_weight_bytes", plan.memory.attention_weights},
            {"other_weight_bytes", plan.memory.other_weights},
            {"cache_bytes", plan.memory.cache},
            {"total_bytes", plan.memory.total()}}},
          {"prefill", cost_json(plan.prefill)},
          {"decode", cost_json(plan.decode)},
          {"tokens_per_second", tokens_per_second(plan, options.workload)},
          {"seconds", plan.seconds}};
}

void print_as_json(const ModelSpec& model, const std::vector<Plan>& all, const Options& options) {
  Json list = Json::array();
  for (const Plan& plan : all) list.push_back(plan_json(plan, options));
  Json best;
  for (const Winner& winner : winners(all)) best[winner.key] = winner.plan - all.data();
  print_json({{"model", options.model},
              {"family", model.family},
              {"weight_bytes", model.weight_bytes()},
              {"ranks", options.ranks},
              {"ranks_per_host", options.ranks_per_host},
              {"sequences", options.workload.sequences},
              {"context", options.workload.context},
              {"prompt", options.workload.prompt},
              {"output", options.workload.output},
              {"kv_dtype", options.kv_dtype},
              {"best", best},
              {"plans", list}});
}

void keep_what_fits(std::vector<Plan>& all, double gigabytes) {
  const double least = std::ranges::min(all, {}, [](const Plan& plan) { return plan.memory.total(); }).memory.total();
  std::erase_if(all, [&](const Plan& plan) { return plan.memory.total() > gigabytes * 1e9; });
  require(!all.empty(), "plan: --memory is {:g} GB, but every plan needs {} a rank or more", gigabytes,
          bytes_text(least));
}

void run(Options options) {
  options.workload.cache = parse_cache_dtype(options.kv_dtype);
  if (options.workload.prompt == 0) options.workload.prompt = options.workload.context;
  const ModelSpec model = read_model(options);
  std::vector<Plan> all = plans(model, options.workload, speed_of(options), options.ranks);
  require(!all.empty(), "plan: the heads of this model can't be spread over {} ranks", options.ranks);
  if (options.memory > 0) keep_what_fits(all, options.memory);
  if (options.json)
    print_as_json(model, all, options);
  else
    print_text(model, all, options);
}

// CLI::Range lets NaN pass.
CLI::Validator number_in(double least, double most) {
  return {[least, most](const std::string& text) {
            double value = 0;
            if (CLI::detail::lexical_cast(text, value) && value >= least && value <= most) return std::string();
            return fmt::format("{} is not a number from {:g} to {:g}", text, least, most);
          },
          fmt::format("{:g} to {:g}", least, most)};
}

void add_speeds(CLI::App& command, Options& options) {
  const auto add = [&](const char* name, double& value, const char* help, double least, double most) {
    command.add_option(name, value, fmt::format("{} (default: {:g})", help, value))->check(number_in(least, most));
  };
  constexpr double kTiny = 1e-6;
  constexpr double kHuge = 1e6;
  add("--flops", options.teraflops, "What a rank computes, in TFLOP/s", kTiny, kHuge);
  add("--bandwidth", options.bandwidth, "What it reads from memory, in GB/s", kTiny, kHuge);
  add("--link", options.link, "What it sends to ranks of other hosts, in GB/s: its part of the host's port", kTiny,
      kHuge);
  add("--latency", options.latency, "How long an exchange between hosts takes at least, in microseconds", 0, kHuge);
  add("--message", options.per_message, "How long sending one message of it takes, in microseconds", 0, kHuge);
  command
      .add_option("--ranks-per-host", options.ranks_per_host,
                  "Ranks that share a host, e.g. one for each of its sockets (default: 1)")
      ->check(CLI::Range(1, 256));
  add("--host-link", options.host_link, "What a rank sends to others of its host, in GB/s", kTiny, kHuge);
  add("--host-latency", options.host_latency, "How long an exchange inside hosts takes at least, in microseconds", 0,
      kHuge);
}

}  // namespace

void add_plan(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("plan", "How best to spread a model over many ranks: memory, traffic, time");
  command
      .add_option(
          "-m,--model", options->model,
          "A Hugging Face config.json of any decoder (weights are not needed), a folder with one, or a .gguf file")
      ->required();
  command.add_option("--ranks", options->ranks, "Ranks, e.g. one for each socket")
      ->required()
      ->check(CLI::Range(1, 4096));
  command.add_option("--batch", options->workload.sequences, "Sequences that decode together (default: 1)");
  command.add_option("--context", options->workload.context, "Tokens of each sequence in decode")->required();
  command.add_option("--prompt", options->workload.prompt, "Tokens of a prompt (default: the context)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command.add_option("--output", options->workload.output,
                     "Tokens that each sequence gets, for the time of everything (default: 256)");
  add_kv_dtype(command, options->kv_dtype);
  command
      .add_option("--weight-bytes", options->weight_bytes,
                  "Bytes of a weight, e.g. 0.5625 for q4_0 (default: what the model's file says)")
      ->check(number_in(0.01, 8));
  command.add_option("--memory", options->memory, "GB that a rank has: leaves out plans that need more")
      ->check(number_in(1e-6, 1e9));
  add_speeds(command, *options);
  command.add_flag("--all", options->all, "Print all plans, not only the best");
  command.add_flag("--json", options->json, "Print one JSON object, with all plans");
  command.footer("Example:\n  regard plan -m config.json --ranks 64 --batch 64 --context 8192 --kv-dtype bf16");
  CommandRanks::run_alone(command, [options] { run(*options); });
}

}  // namespace regard::cli
