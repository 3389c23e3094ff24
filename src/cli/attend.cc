#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string_view>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/outputs.h"
#include "cli/ranks.h"
#include "regard/attention.h"
#include "regard/checkpoint.h"
#include "tensor/fail.h"
#include "tensor/replaced_file.h"

namespace regard::cli {
namespace {

struct Options {
  ModelOptions model;
  int64_t layer = 0;
  std::string input;
  std::string output;
};

void check_tensors(const Checkpoint& input) {
  constexpr std::array<std::string_view, 3> kNames = {"hidden_states", "position_ids", "attention_mask"};
  for (const StoredTensor& tensor : input.tensors())
    require(std::ranges::find(kNames, tensor.name) != kNames.end(), "--input: no tensor is called \"{}\", expected {}",
            printable(tensor.name), fmt::join(kNames, ", "));
}

void run(const Options& options) {
  const auto checkpoint = Checkpoint::open(options.model.model);
  const auto input = Checkpoint::open(options.input);
  check_tensors(input);
  check_output(checkpoint, "--output", options.output);
  check_output(input, "--output", options.output);
  const auto config = AttentionConfig::from(checkpoint, options.layer);
  const auto optional = [&](const char* name) {
    return input.find(name) == nullptr ? ConstTensorView() : input.tensor(name).view();
  };
  PaddedAttentionInput call;
  call.hidden_states = input.tensor("hidden_states").view();
  call.position_ids = optional("position_ids");
  call.attention_mask = optional("attention_mask");
  call.present_key_value = true;
  call.lse = true;
  // What can't be written is said before the weights are loaded.
  { const ReplacedFile probe(options.output); }
  Workspace workspace(options.model.threads);
  const auto attention = Attention::load(checkpoint, options.layer, config, workspace.threads());
  call.workspace = &workspace;
  const AttentionOutput result = attention.forward(call);
  save_safetensors(options.output, std::array<NamedTensor, 4>{{{"hidden_states", result.hidden_states},
                                                               {"key", result.present_key_value.key},
                                                               {"value", result.present_key_value.value},
                                                               {"lse", result.lse}}});
}

}  // namespace

void add_attend(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("attend", "One attention layer on given hidden states");
  options->model.add_to(command);
  command.add_option("--layer", options->layer, "The layer, from 0 on")->required();
  command
      .add_option(
          "--input", options->input,
          "safetensors: hidden_states [batch, seq, hidden] as the layer's norm leaves them; optional position_ids and "
          "attention_mask [batch, seq]")
      ->required();
  command
      .add_option("--output", options->output,
                  "safetensors to write: hidden_states, key and value [batch, kv_heads, seq, head_dim], lse [batch, "
                  "seq, heads]")
      ->required();
  command.footer("Example:\n  regard attend -m model.gguf --layer 3 --input x.safetensors --output y.safetensors");
  CommandRanks::run_alone(command, [options] { run(*options); });
}

}  // namespace regard::cli
