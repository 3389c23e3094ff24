#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/ranks.h"
#include "regard/shards.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

struct Options {
  std::string model;
  std::string folder;
  std::string gqa = std::string(name_of(GQA::REPLICATE_TO_TP_DEGREE));
  int64_t tp = 1;
  bool force = false;
  bool json = false;
};

void run(const Options& options) {
  const auto checkpoint = Checkpoint::open(options.model);
  const GQA gqa = options.gqa == name_of(GQA::CONVERT_TO_MHA) ? GQA::CONVERT_TO_MHA : GQA::REPLICATE_TO_TP_DEGREE;
  const auto saved =
      save_shards(checkpoint, options.folder, {.tp_degree = options.tp, .gqa = gqa, .overwrite = options.force});
  if (options.json) {
    auto files = nlohmann::ordered_json::array();
    for (const SavedShard& shard : saved)
      files.push_back({{"path", shard.path.string()}, {"bytes", shard.bytes}, {"tensors", shard.tensors}});
    print_json({{"model", options.model}, {"tp_degree", options.tp}, {"gqa", options.gqa}, {"files", files}});
    return;
  }
  for (const SavedShard& shard : saved)
    fmt::print("{}: {} tensors, {:.1f} MB\n", shard.path.string(), shard.tensors,
               static_cast<double>(shard.bytes) * 1e-6);
}

}  // namespace

void add_shard(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("shard", "Cut a model into one file a rank, so that each reads only its own");
  command.add_option("-m,--model", options->model, "A .gguf file, a .safetensors file or a Hugging Face folder")
      ->required();
  command.add_option("--tp", options->tp, "Ranks that will share the model, 1 to 1024")
      ->required()
      ->check(CLI::Range(1, 1024));
  command.add_option("-o,--output", options->folder, "The folder to write; it is made if it is not there")->required();
  command
      .add_option("--gqa", options->gqa,
                  "How KV heads come to ranks where they do not divide evenly (default: the first; the second is for "
                  "programs, generate and score do not take it)")
      ->check(CLI::IsMember(
          {std::string(name_of(GQA::REPLICATE_TO_TP_DEGREE)), std::string(name_of(GQA::CONVERT_TO_MHA))}));
  command.add_flag("--force", options->force, "Replace files in the folder that regard shard did not write");
  command.add_flag("--json", options->json, "Print one JSON object");
  command.footer("Example:\n  regard shard -m model.gguf --tp 4 -o model-tp4");
  CommandRanks::run_alone(command, [options] { run(*options); });
}

}  // namespace regard::cli
