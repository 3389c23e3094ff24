#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/ranks.h"
#include "engine/generator.h"
#include "regard/model.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

struct Options {
  ModelOptions model;
  RankOptions ranks;
  std::string file;
  std::string token_file;
  int64_t max_tokens = 0;
  bool json = false;
};

std::vector<int32_t> read_tokens(const Options& options, const Checkpoint& checkpoint) {
  if (!options.token_file.empty()) return read_token_file(options.token_file);
  return Tokenizer::from(checkpoint).encode(read_text_file(options.file));
}

void run(const Options& options) {
  const CommandRanks ranks(
      options.ranks, {{"--max-tokens", fmt::to_string(options.max_tokens)}, {"--kv-dtype", options.model.kv_dtype}});
  const auto checkpoint = ranks.open_model(options.model.model);
  auto tokens = read_tokens(options, checkpoint);
  if (options.max_tokens > 0 && tokens.size() > static_cast<size_t>(options.max_tokens))
    tokens.resize(static_cast<size_t>(options.max_tokens));
  ranks.check_agreement(checkpoint, {{"the text's tokens", fmt::format("{}", fmt::join(tokens, " "))}});
  const ModelSpec spec = ModelSpec::from(checkpoint);
  check_score(spec, tokens);
  Workspace workspace(ranks.threads(options.model.threads));
  const auto model = ranks.load_model(checkpoint, spec, workspace.threads());
  Score result;
  {
    ProgressBar bar(static_cast<int64_t>(tokens.size()));
    result = score(
        model, tokens, workspace,
        [&](int64_t done) {
          if (ranks.speaks()) bar.show(done);
        },
        parse_cache_dtype(options.model.kv_dtype));
  }
  if (!ranks.speaks()) return;
  const double rate = static_cast<double>(tokens.size()) / result.seconds;
  if (options.json)
    print_json({{"tokens", tokens.size()}, {"mean_nll", result.mean_nll}, {"tokens_per_second", rate}});
  else
    fmt::print("{} tokens, mean negative log likelihood {:.6f} nats a token, {:.1f} tokens/s\n", tokens.size(),
               result.mean_nll, rate);
}

}  // namespace

void add_score(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("score", "Mean negative log likelihood of a text");
  options->model.add_to(command);
  CLI::Option& file = *command.add_option("-f,--file", options->file, "The text, UTF-8");
  CLI::Option& tokens = *command.add_option("--tokens", options->token_file,
                                            "Instead of a text: a JSON list of token ids, as [5, 17, 9]; needs no "
                                            "tokenizer");
  tokens.excludes(&file);
  command.add_option("--max-tokens", options->max_tokens, "Score only so many tokens from the beginning")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 40));
  command.add_flag("--json", options->json, "Print one JSON object");
  options->ranks.add_to(command);
  command.footer(
      "Examples:\n"
      "  regard score -m model.gguf -f /usr/share/common-licenses/GPL-3 --max-tokens 2048\n"
      "  regard score -m folder --tokens ids.json");
  command.callback([options, &file, &tokens] {
    require(file.count() + tokens.count() > 0, "--file or --tokens is required");
    run(*options);
  });
}

}  // namespace regard::cli
