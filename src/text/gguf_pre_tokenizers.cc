#include "text/gguf_pre_tokenizers.h"

#include <algorithm>

#include "tensor/fail.h"

namespace regard {
namespace {

constexpr const char* kDigit = R"(\p{N})";
// cl100k_base, and the variants of it that take digits one by one, and marks for letters.
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen35Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// o200k_base, and Mistral's variant without contractions.
constexpr const char* kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Known {
  std::vector<std::string_view> names;
  std::vector<const char*> patterns;
  bool nfc = false;
  bool whole_words = false;
  bool add_bos = false;
};

const std::vector<Known>& known_names() {
  static const std::vector<Known> kKnown = {
      {.names = {"default", "gpt-2", "phi-2"}, .patterns = {kGpt2Pattern}},
      {.names = {"olmo"}, .patterns = {kGpt2Pattern}, .nfc = true},
      {.names = {"smollm", "starcoder", "refact"}, .patterns = {kDigit, kGpt2Pattern}},
      {.names = {"llama-bpe", "llama3", "llama-v3"},
       .patterns = {kLlama3Pattern},
       .whole_words = true,
       .add_bos = true},
      {.names = {"dbrx", "smaug-bpe"}, .patterns = {kLlama3Pattern}},  // "dbrx" is OLMo 2's as well
      {.names = {"qwen2", "deepseek-r1-qwen"}, .patterns = {kQwen2Pattern}, .nfc = true},
      {.names = {"qwen35"}, .patterns = {kQwen35Pattern}, .nfc = true},
      {.names = {"gpt-4o", "llama4"}, .patterns = {kO200kPattern}},
      {.names = {"tekken"}, .patterns = {kTekkenPattern}, .whole_words = true, .add_bos = true}};
  return kKnown;
}

}  // namespace

GgufPreTokenizer gguf_pre_tokenizer(const std::string& name, bool add_prefix_space) {
  const auto known = std::ranges::find_if(
      known_names(), [&](const Known& entry) { return std::ranges::find(entry.names, name) != entry.names.end(); });
  require(known != known_names().end(), "tokenizer: tokenizer.ggml.pre is \"{}\", which this version does not know",
          printable(name));
  GgufPreTokenizer result{.whole_words = known->whole_words, .add_bos = known->add_bos};
  if (known->nfc) result.normalizer.add(normalizers::unicode_form(normalizers::Form::nfc));
  if (add_prefix_space) result.pre_tokenizer.add_prefix_space();
  for (const char* pattern : known->patterns) result.pre_tokenizer.add_split(pattern, PreTokenizer::Behavior::isolated);
  return result;
}

}  // namespace regard
