#include <fmt/format.h>

#include <charconv>
#include <memory>
#include <optional>
#include <utility>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/outputs.h"
#include "cli/ranks.h"
#include "cli/standard_streams.h"
#include "engine/token_outputs.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "tensor/fail.h"
#include "tensor/replaced_file.h"

namespace regard::cli {
namespace {

// Of a draft model where none is asked for.
constexpr int64_t kDraftOfModel = 4;

struct Options {
  ModelOptions model;
  RankOptions ranks;
  std::string prompt;
  std::optional<std::string> tokens;  // ids instead of the prompt
  std::string system;
  int64_t max_tokens = 128;
  SamplerConfig sampler;
  std::optional<int64_t> draft_length;
  std::string draft_model;
  std::string restore_from;
  std::string save_to;
  bool chat = false;
  bool json = false;

  [[nodiscard]] int64_t tokens_a_draft() const {
    return draft_length.value_or(draft_model.empty() ? 0 : kDraftOfModel);
  }
};

// Writes tokens as they come: their text or, without a tokenizer, ids with commas between them.
class Stream {
 public:
  explicit Stream(bool has_text) : has_text_(has_text) {}
  void write(const GeneratedToken& token) {
    if (has_text_)
      fmt::print("{}", token.text);
    else
      fmt::print("{}{}", std::exchange(begun_, true) ? "," : "", token.token);
    flush_output();
  }
  void finish() {
    fmt::print("\n");
    flush_output();
  }

 private:
  bool has_text_;
  bool begun_ = false;
};

std::string read_prompt(const Options& options, const CommandRanks& ranks) {
  if (options.prompt != "-") return options.prompt;
  return ranks.from_first(ranks.speaks() ? read_standard_input() : "");
}

std::vector<int32_t> read_prompt_tokens(const Options& options, const CommandRanks& ranks, const Checkpoint& checkpoint,
                                        const std::optional<Tokenizer>& text_tokenizer) {
  if (options.tokens) return parse_tokens(*options.tokens);
  const Tokenizer& tokenizer = *text_tokenizer;
  const std::string text = read_prompt(options, ranks);
  if (!options.restore_from.empty()) return tokenizer.encode(text, Tokenizer::Bos::never);
  if (!options.chat) return tokenizer.encode(text);
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({.role = "system", .content = options.system});
  messages.push_back({.role = "user", .content = text});
  return tokenizer.encode(apply_chat_template(checkpoint, tokenizer, messages), Tokenizer::Bos::never);
}

// CLI11 itself lets negative and too large seeds wrap around.
std::string whole_number(const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole ? "" : fmt::format("{} is not a whole number from 0 to 2^64-1", text);
}

std::string not_empty(const std::string& path) { return path.empty() ? "the name is empty" : ""; }

double prefill_rate(const GenerateResult& result) {
  return static_cast<double>(result.prefill_tokens) / result.prefill_seconds;
}

// The first token comes with the prefill.
double decode_rate(const GenerateResult& result) {
  return result.tokens.size() < 2 ? 0.0 : static_cast<double>(result.tokens.size() - 1) / result.decode_seconds;
}

void print_result(bool has_text, std::span<const int32_t> prompt, const GenerateResult& result) {
  nlohmann::ordered_json json{{"prompt_tokens", prompt}, {"tokens", result.tokens}};
  if (has_text) json["text"] = result.text;
  json.update({{"restored_tokens", result.restored_tokens},
               {"draft_tokens", result.draft_tokens},
               {"accepted_tokens", result.accepted_tokens},
               {"prefill_tokens_per_second", prefill_rate(result)},
               {"decode_tokens_per_second", decode_rate(result)},
               {"peak_memory_bytes", peak_memory_bytes()}});
  print_json(json);
}

void print_summary(std::span<const int32_t> prompt, const Options& options, const GenerateResult& result) {
  std::string summary = fmt::format("{} prompt tokens, {} generated", prompt.size(), result.tokens.size());
  if (!options.restore_from.empty()) summary += fmt::format(", {} restored", result.restored_tokens);
  summary +=
      fmt::format("; prefill {:.1f} tokens/s, decode {:.1f} tokens/s", prefill_rate(result), decode_rate(result));
  if (options.tokens_a_draft() > 0)
    summary += fmt::format("; draft {} of {} tokens accepted", result.accepted_tokens, result.draft_tokens);
  say("[{}]\n", summary);
}

Fields settings(const Options& options) {
  return {{"--prompt", options.prompt},
          {"--tokens", options.tokens.value_or("")},
          {"--system", options.system},
          {"--chat", fmt::to_string(options.chat)},
          {"--max-tokens", fmt::to_string(options.max_tokens)},
          {"--temperature", fmt::to_string(options.sampler.temperature)},
          {"--top-k", fmt::to_string(options.sampler.top_k)},
          {"--top-p", fmt::to_string(options.sampler.top_p)},
          {"--seed", fmt::to_string(options.sampler.seed)},
          {"--draft", fmt::to_string(options.tokens_a_draft())},
          {"--draft-model", options.draft_model},
          {"--kv-dtype", options.model.kv_dtype},
          {"--save-cache", options.save_to},
          {"--restore-cache", options.restore_from}};
}

// Throws Error for a draft model whose ids mean something else.
void check_vocabulary(const Tokenizer& drafts, const Tokenizer& own, const std::string& draft_model) {
  const int32_t ids = std::min(drafts.vocabulary_size(), own.vocabulary_size());
  for (int32_t id = 0; id < ids; ++id)
    require(drafts.decode({&id, 1}) == own.decode({&id, 1}),
            "--draft-model {} has another vocabulary: token {} is \"{}\", expected \"{}\"", draft_model, id,
            printable(drafts.decode({&id, 1})), printable(own.decode({&id, 1})));
}

// The model that guesses, if there is one.
std::optional<Model> load_draft_model(const Options& options, const CommandRanks& ranks,
                                      const std::optional<Tokenizer>& tokenizer, const Threads& threads) {
  if (options.draft_model.empty()) return std::nullopt;
  const Checkpoint checkpoint = ranks.open_model(options.draft_model);
  ranks.check_agreement(checkpoint);
  if (!options.tokens) check_vocabulary(Tokenizer::from(checkpoint), *tokenizer, options.draft_model);
  return ranks.load_model(checkpoint, ModelSpec::from(checkpoint), threads);
}

// Returns whether it came to its end.
bool run(const Options& options) {
  const CommandRanks ranks(options.ranks, settings(options));
  const auto checkpoint = ranks.open_model(options.model.model);
  const bool has_text = !options.tokens;
  std::optional<Tokenizer> tokenizer;
  if (has_text || Tokenizer::is_in(checkpoint)) tokenizer = Tokenizer::from(checkpoint);
  const auto prompt = read_prompt_tokens(options, ranks, checkpoint, tokenizer);
  ranks.check_agreement(checkpoint);
  const ModelSpec spec = ModelSpec::from(checkpoint);
  const auto ends = end_tokens_of(checkpoint, spec.vocab_size);
  Stream stream(has_text);
  // Rows of the head without a token are drawn with ids as little as with text.
  SamplerConfig sampler = options.sampler;
  if (tokenizer) sampler.vocabulary = tokenizer->vocabulary_size();
  bool watching = false;
  const GenerationRequest request{.prompt = prompt,
                                  .max_tokens = options.max_tokens,
                                  .sampler = sampler,
                                  .on_token = [&](const GeneratedToken& token) {
                                    // Until the first token there is nothing to keep: a Ctrl-C in a long prefill ends
                                    // the process at once.
                                    if (!watching) watch_for_interrupt();
                                    watching = true;
                                    if (!options.json && ranks.speaks()) stream.write(token);
                                    return true;
                                  }};
  GenerateOptions settings{.tokenizer = has_text ? &*tokenizer : nullptr,
                           .end_tokens = ends,
                           .cache_dtype = parse_cache_dtype(options.model.kv_dtype),
                           .draft_length = options.tokens_a_draft(),
                           .restore_from = options.restore_from,
                           .save_to = options.save_to,
                           .model_digest = digest_of(checkpoint),
                           .interrupted = interrupted};
  // What is refused is refused before the weights are loaded, and where a sequence can't be saved, too.
  check_generate(spec, request, settings);
  if (options.tokens) check_outputs(spec, prompt);
  if (!options.save_to.empty() && ranks.speaks()) {
    check_output(checkpoint, "--save-cache", options.save_to);
    const ReplacedFile probe(options.save_to);
  }
  Workspace workspace(ranks.threads(options.model.threads));
  const auto draft_model = load_draft_model(options, ranks, tokenizer, workspace.threads());
  const auto model = ranks.load_model(checkpoint, spec, workspace.threads());
  settings.draft_model = draft_model ? &*draft_model : nullptr;
  const auto result = generate(model, request, settings, workspace);
  if (ranks.speaks() && options.json) print_result(has_text, prompt, result);
  if (ranks.speaks() && !options.json) {
    stream.finish();
    print_summary(prompt, options, result);
  }
  return !result.interrupted;
}

}  // namespace

void add_generate(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App& command = *app.add_subcommand("generate", "Continue a prompt");
  options->model.add_to(command);
  CLI::Option& prompt = *command.add_option("-p,--prompt", options->prompt, "The prompt; - reads standard input");
  CLI::Option& tokens = *command.add_option(
      "--tokens", options->tokens,
      "Instead of a prompt: token ids, as 5,17,9; prints ids, too, and needs no tokenizer, which only "
      "tells rows of the head that are padding and never drawn");
  tokens.excludes(&prompt);
  command.add_option("-n,--max-tokens", options->max_tokens, "The most tokens to generate (default: 128)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command.add_option("--temperature", options->sampler.temperature,
                     "0: always the most likely token (default); higher: more varied");
  command.add_option("--top-k", options->sampler.top_k, "Draw from the k most likely tokens only (default: 0, off)");
  command.add_option("--top-p", options->sampler.top_p,
                     "Draw from the most likely tokens with this much of the mass (default: 1, off)");
  command.add_option("--seed", options->sampler.seed, "Seed of the drawing, 0 to 2^64-1 (default: 0)")
      ->check(whole_number);
  command
      .add_option("--draft", options->draft_length,
                  "Guess up to so many tokens from the text before and check them at once, 0 to 64 (default: 0, or 4 "
                  "with --draft-model); the text stays the same")
      ->check(CLI::Range(0, 64));
  command
      .add_option("--draft-model", options->draft_model,
                  "Let this smaller model of the same vocabulary guess; the text stays the same")
      ->check(not_empty);
  command.add_option("--save-cache", options->save_to, "Save the sequence, with its keys and values, after the text")
      ->check(not_empty);
  CLI::Option& restore = *command
                              .add_option("--restore-cache", options->restore_from,
                                          "Continue the sequence in this file; the prompt, if any, follows its text")
                              ->check(not_empty);
  CLI::Option& chat = *command.add_flag("--chat", options->chat,
                                        "Put the prompt into the model's chat template, as the user's message");
  restore.excludes(&chat);
  tokens.excludes(&chat);
  command.add_option("--system", options->system, "With --chat: a system message")->needs("--chat");
  command.add_flag("--json", options->json,
                   "Print one JSON object with tokens, text (but with --tokens), speed and memory");
  options->ranks.add_to(command);
  command.footer(
      "Examples:\n"
      "  regard generate -m model.gguf -p \"Once upon a time\" -n 64\n"
      "  regard generate -m model.gguf --chat -p \"Why is the sky blue?\" --temperature 0.7 --seed 1\n"
      "  regard generate -m folder --tokens 5,17,9 -n 8\n"
      "  cat question.txt | regard generate -m model.gguf -p - --json\n"
      "  regard generate -m model.gguf -p \"Once upon a time\" --save-cache tale.safetensors\n"
      "  regard generate -m model.gguf --restore-cache tale.safetensors -p \" Then\" --draft 4\n"
      "  regard generate -m large.gguf --draft-model small.gguf -p \"Once upon a time\"");
  command.callback([options, &prompt, &tokens] {
    require(options->draft_model.empty() || options->tokens_a_draft() > 0,
            "--draft is 0 and --draft-model is given, expected 1 to 64");
    require(prompt.count() + tokens.count() > 0 || !options->restore_from.empty(),
            "--prompt or --tokens is required, except with --restore-cache");
    if (!run(*options)) throw CLI::RuntimeError(kInterrupted);
  });
}

}  // namespace regard::cli
