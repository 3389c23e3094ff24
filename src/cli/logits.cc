#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/outputs.h"
#include "cli/ranks.h"
#include "engine/token_outputs.h"
#include "tensor/fail.h"
#include "tensor/replaced_file.h"

namespace regard::cli {
namespace {

struct Options {
  ModelOptions model;
  RankOptions ranks;
  std::string tokens;
  std::string output;
  bool layers = false;
};

void run(const Options& options) {
  const CommandRanks ranks(options.ranks, {{"--tokens", options.tokens},
                                           {"--layers", fmt::to_string(options.layers)},
                                           {"--kv-dtype", options.model.kv_dtype}});
  const auto tokens = parse_tokens(options.tokens);
  const auto checkpoint = ranks.open_model(options.model.model);
  ranks.check_agreement(checkpoint);
  // What is refused is refused before the weights are loaded, and a file that can't be written, too.
  const ModelSpec spec = ModelSpec::from(checkpoint);
  check_outputs(spec, tokens);
  if (ranks.speaks()) {
    check_output(checkpoint, "--output", options.output);
    const ReplacedFile probe(options.output);
  }
  Workspace workspace(ranks.threads(options.model.threads));
  const auto model = ranks.load_model(checkpoint, spec, workspace.threads());
  TokenOutputs outputs;
  {
    ProgressBar bar(std::ssize(tokens));
    outputs = outputs_of(model, tokens,
                         {.hidden_states = options.layers,
                          .cache_dtype = parse_cache_dtype(options.model.kv_dtype),
                          .progress =
                              [&](int64_t done) {
                                if (ranks.speaks()) bar.show(done);
                              }},
                         workspace);
  }
  if (!ranks.speaks()) return;
  const Tensor ids(DType::i32, {std::ssize(tokens)});
  std::ranges::copy(tokens, ids.elements<int32_t>().begin());
  std::vector<NamedTensor> tensors = {{"tokens", ids}, {"logits", outputs.logits}};
  if (options.layers) tensors.push_back({"hidden_states", outputs.hidden_states});
  save_safetensors(options.output, tensors);
}

}  // namespace

void add_logits(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("logits", "The logits of given tokens, and what each layer leaves");
  options->model.add_to(command);
  command.add_option("--tokens", options->tokens, "Token ids, as 5,17,9: one sequence from position 0 on")->required();
  command
      .add_option("-o,--output", options->output,
                  "safetensors to write: tokens i32 [tokens], logits f32 [tokens, vocabulary]")
      ->required();
  command.add_flag("--layers", options->layers,
                   "Also hidden_states f32 [layers + 1, tokens, hidden]: the embedding's rows, and what each layer "
                   "leaves, before the final norm");
  options->ranks.add_to(command);
  command.footer("Example:\n  regard logits -m folder --tokens 5,17,9 --layers -o out.safetensors");
  command.callback([options] { run(*options); });
}

}  // namespace regard::cli
