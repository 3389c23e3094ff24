#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>

#include "cli/batch_requests.h"
#include "cli/batch_results.h"
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/outputs.h"
#include "cli/ranks.h"
#include "cli/standard_streams.h"
#include "regard/engine.h"
#include "regard/model.h"
#include "tensor/available_memory.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

struct Options {
  ModelOptions model;
  RankOptions ranks;
  std::string input;
  std::string output;
  int64_t max_batch = 32;
  int64_t kv_memory = 0;  // 0: half of what is available
  bool resume = false;
};

int64_t default_memory(int64_t ranks_of_host) {
  const auto available = available_memory_bytes();
  require(available.has_value(),
          "the system does not tell how much memory is available; --kv-memory says how much to use");
  return *available / 2 / ranks_of_host;
}

// Half of the memory is for the caches at most; they take no more than all slots can fill, and touch it as they do.
EngineOptions engine_options(const Options& options, const CommandRanks& ranks, const Tokenizer& tokenizer,
                             int64_t requests) {
  const int64_t ranks_of_host = ranks.on_this_host();
  return {.tokenizer = &tokenizer,
          .max_sequences = std::clamp<int64_t>(requests, 1, options.max_batch),
          .cache_bytes = options.kv_memory > 0 ? options.kv_memory : default_memory(ranks_of_host),
          .cache_dtype = parse_cache_dtype(options.model.kv_dtype),
          .interrupted = interrupted};
}

// Whether ranks that step together step once more: until all is done, or a signal says one of them to stop.
bool goes_on(const Engine& engine, const CommandRanks& ranks) {
  return !ranks.any(interrupted() || (ranks.speaks() && engine.open_requests() == 0));
}

// The requests of a file on their way through an engine into another one.
class Batch {
 public:
  Batch(std::vector<BatchRequest> requests, std::span<const std::string> lines, ResultsFile results,
        const ResultSource& source, Engine& engine)
      : requests_(std::move(requests)), results_(std::move(results)), source_(source), engine_(engine) {
    // What can't be written is said before hours of work.
    results_.write();
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (lines[i].empty())
        submit(i);
      else
        ++kept_;
    }
  }

  void run(const CommandRanks& ranks) {
    ProgressBar bar(std::max<int64_t>(1, tokens_to_come_));
    const auto start = std::chrono::steady_clock::now();
    while (goes_on(engine_, ranks)) {
      engine_.step();
      results_.write_now_and_then();
      // A text that ends with an error counts twice.
      bar.show(std::min(tokens_to_come_, engine_.stats().generated_tokens + spared_));
    }
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    results_.write();
  }

  [[nodiscard]] bool all_failed() const { return errors_ > 0 && errors_ == std::ssize(requests_); }

  void print_summary() const {
    const EngineStats stats = engine_.stats();
    const auto rate = [&](int64_t tokens) { return static_cast<double>(tokens) / std::max(seconds_, 1e-9); };
    say("[{} requests: {} done, {} of them with an error, {} kept from before; {} prompt tokens, {} generated; "
        "{:.1f} tokens/s, {:.1f} generated tokens/s]\n",
        requests_.size(), done_, errors_, kept_, stats.prompt_tokens, stats.generated_tokens,
        rate(stats.prompt_tokens + stats.generated_tokens), rate(stats.generated_tokens));
    say("[cache: at most {} of {} pages in use, {} of {} prompt tokens shared, {} preemptions]\n",
        stats.most_pages_in_use, stats.pages, stats.shared_tokens, stats.prompt_tokens, stats.preemptions);
  }

 private:
  void submit(size_t index) {
    const BatchRequest& request = requests_[index];
    std::vector<int32_t> prompt;
    try {
      require(request.error.empty(), "{}", request.error);
      prompt = prompt_tokens(request, source_);
      GenerationRequest settings = request.settings;
      settings.prompt = prompt;
      const int64_t most_tokens = engine_.most_tokens(settings);
      engine_.submit(std::move(settings), [this, index, prompt, most_tokens](const GeneratedText& text) {
        spared_ += most_tokens - static_cast<int64_t>(text.tokens.size());
        set(index, prompt, text);
      });
      tokens_to_come_ += most_tokens;
    } catch (const Error& error) {
      set(index, prompt, {.finish = FinishReason::error, .error = error.what()});
    }
  }

  void set(size_t index, std::span<const int32_t> prompt, const GeneratedText& text) {
    ++done_;
    errors_ += text.finish == FinishReason::error ? 1 : 0;
    results_.set(index, result_line(requests_[index], prompt, text, source_));
  }

  std::vector<BatchRequest> requests_;
  ResultsFile results_;
  const ResultSource& source_;
  Engine& engine_;
  int64_t tokens_to_come_ = 0;  // at most
  int64_t spared_ = 0;          // of those, what ended texts did not take
  int64_t done_ = 0;
  int64_t errors_ = 0;
  int64_t kept_ = 0;
  double seconds_ = 0;
};

// What rank 0 reads and writes.
struct Files {
  std::vector<BatchRequest> requests;
  std::vector<std::string> lines;  // of an earlier output
  FileLock lock;
};

std::vector<BatchRequest> read_requests(const Options& options) {
  const std::string input = options.input == "-" ? "/dev/stdin" : options.input;
  std::error_code none;
  require(!std::filesystem::equivalent(input, options.output, none),
          "{} is both the input and the output, expected two files", options.input);
  return read_batch_requests(options.input);
}

Files open_files(const Options& options, std::vector<BatchRequest> requests, const ResultSource& source) {
  check_output(source.checkpoint, "--output", options.output);
  FileLock lock = lock_output(options.output, options.resume);
  auto lines = read_batch_results(options.output, requests);
  check_results(lines, requests, source);
  return {.requests = std::move(requests), .lines = std::move(lines), .lock = std::move(lock)};
}

// What the numbers depend on, beside the model.
std::string name_of_numbers(const Options& options, DType kv_dtype) {
  const ParallelConfig& config = options.ranks.config();
  return fmt::format("{} {}", name_of(kv_dtype),
                     config.deterministic ? "deterministic" : fmt::format("{} ranks", config.tp_degree));
}

Fields settings(const Options& options) {
  return {{"--max-batch", fmt::to_string(options.max_batch)}, {"--kv-dtype", options.model.kv_dtype}};
}

void run(const Options& options) {
  require(options.ranks.dp == 1 && !options.ranks.flash_decoding,
          "{} is given, but each rank of a batch has all sequences; give --tp, and --cp for long prompts",
          options.ranks.flash_decoding ? "--flash-decoding" : fmt::format("--dp {}", options.ranks.dp));
  const CommandRanks ranks(options.ranks, settings(options));
  std::vector<BatchRequest> requests;
  if (ranks.speaks()) requests = read_requests(options);
  const auto checkpoint = ranks.open_model(options.model.model);
  ranks.check_agreement(checkpoint);
  const auto tokenizer = Tokenizer::from(checkpoint);
  const DType kv_dtype = parse_cache_dtype(options.model.kv_dtype);
  const ResultSource source{.checkpoint = checkpoint,
                            .tokenizer = tokenizer,
                            .name = fmt::format("{} {}", digest_of(checkpoint), name_of_numbers(options, kv_dtype))};
  const int64_t count = ranks.from_first(std::ssize(requests));
  Files files;
  if (ranks.speaks()) files = open_files(options, std::move(requests), source);
  Workspace workspace(ranks.threads(options.model.threads));
  const auto model = ranks.load_model(checkpoint, ModelSpec::from(checkpoint), workspace.threads());
  Engine engine(model, engine_options(options, ranks, tokenizer, count), workspace);
  watch_for_interrupt();
  bool failed = false;
  if (ranks.speaks()) {
    Batch batch(std::move(files.requests), files.lines, ResultsFile(options.output, files.lines, std::move(files.lock)),
                source, engine);
    batch.run(ranks);
    batch.print_summary();
    failed = batch.all_failed();
  } else {
    while (goes_on(engine, ranks)) engine.step();
  }
  if (ranks.any(interrupted())) throw CLI::RuntimeError(kInterrupted);
  if (ranks.any(failed)) throw CLI::RuntimeError(kAllFailed);
}

}  // namespace

void add_batch(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("batch", "Continue many prompts at once, from a file to a file");
  options->model.add_to(command);
  command.add_option("-i,--input", options->input, "The requests, one JSON object a line; - reads standard input")
      ->required();
  command.add_option("-o,--output", options->output, "The results, one JSON object a line, in the same order")
      ->required();
  command.add_option("--max-batch", options->max_batch, "The most sequences at a time (default: 32)")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}));
  command
      .add_option("--kv-memory", options->kv_memory,
                  "Bytes for cached keys and values of each rank, also as 512M or 4G (default: what the sequences can "
                  "need, and at most half of the available memory)")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 60));
  command.add_flag(
      "--resume", options->resume,
      "Keep the results that the output has already (of the same model, prompts and settings; errors run again), and "
      "run the rest; without it, a file that is not empty is refused");
  command.footer(
      "A request has an id and a prompt or, for the model's chat template, messages: [{\"role\": \"user\", "
      "\"content\": TEXT}].\n"
      "It may have max_tokens, temperature, top_k, top_p, seed (as for generate), stop (a text or a list of texts: the "
      "answer\n"
      "ends before the first of them) and salt (a whole number; requests with different ones share no cached "
      "prefixes).\n"
      "Example:\n"
      "  echo '{\"id\": \"a\", \"prompt\": \"Once upon a time\", \"max_tokens\": 64}' > requests.jsonl\n"
      "  regard batch -m model.gguf -i requests.jsonl -o results.jsonl --resume");
  options->ranks.add_to(command);
  command.callback([options] { run(*options); });
}

}  // namespace regard::cli
