#include "model/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/ranks.h"
#include "engine/token_outputs.h"
#include "regard/mask.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

struct Options {
  std::string model;
  std::optional<std::string> tokens;
  std::optional<std::string> reference;
  int threads = 0;
  bool json = false;
};

// What another implementation computed.
struct Reference {
  explicit Reference(const std::string& path) : file(Checkpoint::open(path)) {}

  // The tensor under the first of these names; empty if there is none.
  [[nodiscard]] ConstTensorView find(std::initializer_list<const char*> names) const {
    for (const char* name : names)
      if (const StoredTensor* tensor = file.find(name); tensor != nullptr) return tensor->view();
    return {};
  }
  [[nodiscard]] ModelStates states() const {
    return {.hidden = find({"hidden_states", "hidden"}), .logits = file.tensor("logits").view()};
  }
  [[nodiscard]] std::vector<int32_t> tokens() const {
    const ConstTensorView ids = file.tensor("tokens").view();
    require(ids.shape().rank() == 1 && (ids.dtype() == DType::i32 || ids.dtype() == DType::i64),
            "reference: tokens have shape {} and dtype {}, expected [tokens] and i32 or i64", ids.shape(),
            name_of(ids.dtype()));
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < ids.size(0); ++i) {
      const int64_t id = ids.dtype() == DType::i32 ? ids.as<int32_t>()[i] : ids.as<int64_t>()[i];
      constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
      require(id >= 0 && id <= kLargest, "reference: token id is {}, expected 0 to {}", id, kLargest);
      tokens.push_back(static_cast<int32_t>(id));
    }
    return tokens;
  }

  Checkpoint file;
};

// A text long enough that short windows and chunks end in it.
std::vector<int32_t> made_up_tokens(const ModelSpec& spec) {
  constexpr int64_t kTokens = 24;
  constexpr int64_t kMost = 64;
  int64_t count = kTokens;
  for (const LayerSpec& layer : spec.layers) {
    const int64_t reach = Mask::of(layer.attention).reach().value_or(0);
    if (reach + kTokens / 2 <= kMost) count = std::max(count, reach + kTokens / 2);
  }
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < std::min(count, spec.context_length); ++i)
    tokens.push_back(static_cast<int32_t>((i + 1) * 7919 % spec.vocab_size));
  return tokens;
}

const PartError* first_that_fails(std::span<const PartError> parts) {
  const auto found = std::ranges::find_if_not(parts, &PartError::holds);
  return found == parts.end() ? nullptr : &*found;
}

void print_table(const char* title, std::span<const PartError> parts) {
  fmt::print("{}\n{:<12}{:>12}{:>12}{:>12}{:>12}\n", title, "", "largest", "allowed", "rms", "allowed");
  for (const PartError& part : parts)
    fmt::print("{:<12}{:>12.1e}{:>12.1e}{:>12.1e}{:>12.1e}{}\n", part.name, part.error.largest, part.allowed.largest,
               part.error.rms, part.allowed.rms, part.holds() ? "" : "  too large");
}

void print_verdict(const char* what, std::span<const PartError> parts) {
  const PartError* failed = first_that_fails(parts);
  if (failed == nullptr)
    fmt::print("{}: within the tolerance everywhere\n", what);
  else
    fmt::print("{}: leaves the tolerance first in: {}\n", what, failed->name);
}

nlohmann::ordered_json to_json(std::span<const PartError> parts) {
  auto list = nlohmann::ordered_json::array();
  for (const PartError& part : parts)
    list.push_back({{"name", part.name},
                    {"largest", part.error.largest},
                    {"largest_allowed", part.allowed.largest},
                    {"rms", part.error.rms},
                    {"rms_allowed", part.allowed.rms},
                    {"holds", part.holds()}});
  return list;
}

// Of no parts, or where all hold: null.
nlohmann::ordered_json name_of_first_failure(std::span<const PartError> parts) {
  const PartError* failed = first_that_fails(parts);
  return failed == nullptr ? nlohmann::ordered_json() : nlohmann::ordered_json(failed->name);
}

void print_as_json(size_t tokens, std::span<const PartError> parts, const std::vector<PartError>* compared) {
  nlohmann::ordered_json json{
      {"tokens", tokens}, {"parts", to_json(parts)}, {"first_failure", name_of_first_failure(parts)}};
  if (compared != nullptr)
    json["reference"] = {{"parts", to_json(*compared)}, {"first_failure", name_of_first_failure(*compared)}};
  print_json(json);
}

void print_as_text(const ModelSpec& spec, size_t tokens, std::span<const PartError> parts,
                   const std::vector<PartError>* compared) {
  fmt::print("{}, {} layers, {} tokens; errors are of the worst token, relative to its root mean square\n\n",
             spec.family, spec.layers.size(), tokens);
  print_table("Each part beside fp64, on the input that it had:", parts);
  if (compared != nullptr) print_table("\nWhat layers hand on, beside the reference:", *compared);
  fmt::print("\n");
  print_verdict("fp64", parts);
  if (compared != nullptr) print_verdict("reference", *compared);
}

// Returns whether all errors are within their tolerance.
bool run(const Options& options) {
  std::optional<Reference> reference;
  if (options.reference) reference.emplace(*options.reference);
  const auto checkpoint = Checkpoint::open(options.model);
  const auto spec = ModelSpec::from(checkpoint);
  const auto tokens = options.tokens ? parse_tokens(*options.tokens)
                      : reference    ? reference->tokens()
                                     : made_up_tokens(spec);
  check_outputs(spec, tokens);
  const int64_t length = std::ssize(tokens);
  if (reference)
    check_reference(reference->states(), {std::ssize(spec.layers) + 1, length, spec.hidden_size},
                    {length, spec.vocab_size});
  Workspace workspace(options.threads);
  const auto model = Model::load(checkpoint, spec, workspace.threads());
  const TokenOutputs outputs = outputs_of(model, tokens, {.hidden_states = true}, workspace);
  const ModelStates ours{.hidden = outputs.hidden_states, .logits = outputs.logits};
  std::vector<PartError> compared;
  if (reference) compared = compare_states(ours, reference->states());
  std::vector<PartError> parts;
  {
    ProgressBar bar(std::ssize(spec.layers) + 2, "parts");
    parts = verify_parts(model, checkpoint, tokens, ours, workspace.threads(), [&](int64_t done) { bar.show(done); });
  }
  const std::vector<PartError>* beside = reference ? &compared : nullptr;
  if (options.json)
    print_as_json(tokens.size(), parts, beside);
  else
    print_as_text(spec, tokens.size(), parts, beside);
  return first_that_fails(parts) == nullptr && first_that_fails(compared) == nullptr;
}

}  // namespace

void add_verify(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command =
      *app.add_subcommand("verify", "Each layer beside the same in fp64, and beside another implementation");
  command.add_option("-m,--model", options->model, "A .gguf file, a .safetensors file or a Hugging Face folder")
      ->required();
  CLI::Option& tokens = *command.add_option("--tokens", options->tokens,
                                            "Token ids, as 5,17,9 (default: 24 to 64 made-up ones, so that short "
                                            "windows end among them)");
  CLI::Option& reference = *command.add_option(
      "--reference", options->reference,
      "safetensors to compare with: tokens i32 or i64 [tokens], logits f32 or f64 [tokens, "
      "vocabulary] and, if known, hidden_states [layers + 1, tokens, hidden]: the embedding's rows, "
      "and what each layer leaves, before the final norm");
  tokens.excludes(&reference);
  command.add_flag("--json", options->json, "Print one JSON object");
  add_threads(command, options->threads);
  command.footer(fmt::format(
      "Each layer runs in fp64 on the input that it had in the model; keys and values are f32. Its error may be {}\n"
      "times what changes in the exact result when its input is rounded to f32 once more, and {} roundings of the\n"
      "result; beside the reference, {} of the magnitude in the root mean square, and ten times that in one number.\n"
      "The exit code is 0 where all errors are, 1 where one is not.\n\n"
      "Examples:\n"
      "  regard verify -m model.gguf\n"
      "  regard verify -m folder --reference transformers.safetensors",
      kInputRoundings, kResultRoundings, kReferenceTolerance));
  CommandRanks::run_alone(command, [options] {
    if (!run(*options)) throw CLI::RuntimeError(kNotVerified);
  });
}

}  // namespace regard::cli
