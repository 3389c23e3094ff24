#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_set>

#include "tensor/fail.h"
#include "text/byte_alphabet.h"
#include "text/byte_pair_encoder.h"
#include "text/charsmap.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/tokenizer_source.h"
#include "text/unigram_encoder.h"
#include "text/utf8.h"

namespace regard {
namespace {

using namespace std::string_view_literals;

constexpr const char* kSpaceMark = "\u2581";  // how SentencePiece writes a space

// Of `tokenizer.ggml.token_type`.
enum TokenType : int64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

constexpr std::array kKnownKeys = {"model"sv,
                                   "pre"sv,
                                   "tokens"sv,
                                   "token_type"sv,
                                   "token_type_count"sv,
                                   "scores"sv,
                                   "merges"sv,
                                   "add_bos_token"sv,
                                   "add_eos_token"sv,
                                   "add_sep_token"sv,
                                   "add_space_prefix"sv,
                                   "remove_extra_whitespaces"sv,
                                   "precompiled_charsmap"sv};

// Tokens that end a text although no key says so: llama.cpp knows them by their texts, and the chat templates of their
// models end an answer with them. Only control tokens count: "</s>" is also a tag of HTML.
constexpr std::array kEndTexts = {"<|eot_id|>"sv,
                                  "<|im_end|>"sv,
                                  "<|end|>"sv,
                                  "<|return|>"sv,
                                  "<|call|>"sv,
                                  "<end_of_turn>"sv,
                                  "<|endoftext|>"sv,
                                  "</s>"sv,
                                  "<|eom_id|>"sv,
                                  "<EOT>"sv,
                                  "_<EOT>"sv,
                                  "[EOT]"sv,
                                  "[EOS]"sv,
                                  "<|end_of_text|>"sv,
                                  "<end_of_utterance>"sv,
                                  "<eos>"sv,
                                  "<\uFF5Cend\u2581of\u2581sentence\uFF5C>"sv};

class GgufReader {
 public:
  explicit GgufReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  TokenizerSource read() {
    const auto* model = find<std::string>("model");
    require(model != nullptr, "tokenizer: {} holds no tokenizer", checkpoint_.path().string());
    check_keys();
    read_tokens();
    if (*model == "gpt2")
      read_byte_level();
    else if (*model == "llama")
      read_sentence_piece();
    else if (*model == "t5")
      read_unigram();
    else
      fail(
          "tokenizer: tokenizer.ggml.model is \"{}\", expected \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece's "
          "BPE) "
          "or \"t5\" (unigram)",
          printable(*model));
    read_end_tokens();
    return std::move(source_);
  }

 private:
  template <class T>
  [[nodiscard]] const T* find(std::string_view key) const {
    const auto found = checkpoint_.metadata().find("tokenizer.ggml." + std::string(key));
    if (found == checkpoint_.metadata().end()) return nullptr;
    const T* value = std::get_if<T>(&found->second);
    require(value != nullptr, "tokenizer: tokenizer.ggml.{} is of the wrong kind", key);
    return value;
  }

  [[nodiscard]] bool is_on(std::string_view key, bool otherwise) const {
    const auto* value = find<bool>(key);
    return value == nullptr ? otherwise : *value;
  }

  // The id that a key holds; the default where it is missing and there is such a token.
  [[nodiscard]] std::optional<int32_t> find_id(std::string_view key, std::optional<int32_t> otherwise = {}) const {
    const auto* id = find<int64_t>(key);
    if (id == nullptr) return otherwise && static_cast<size_t>(*otherwise) < types_.size() ? otherwise : std::nullopt;
    require(*id >= 0 && static_cast<size_t>(*id) < types_.size(),
            "tokenizer: tokenizer.ggml.{} is {}, expected 0 to {}", key, *id, types_.size() - 1);
    return static_cast<int32_t>(*id);
  }

  void check_keys() const {
    constexpr std::string_view kPrefix = "tokenizer.ggml.";
    for (const auto& [name, value] : checkpoint_.metadata()) {
      if (!name.starts_with(kPrefix)) continue;
      const std::string_view key = std::string_view(name).substr(kPrefix.size());
      require(key.ends_with("_token_id") || std::ranges::find(kKnownKeys, key) != kKnownKeys.end(),
              "tokenizer: {} is a key that is not known", printable(name));
    }
    require(!is_on("add_sep_token", false), "tokenizer: tokenizer.ggml.add_sep_token is true, expected false");
  }

  void read_tokens() {
    const auto* tokens = find<std::vector<std::string>>("tokens");
    const auto* types = find<std::vector<int64_t>>("token_type");
    require(tokens != nullptr && !tokens->empty(), "tokenizer: tokenizer.ggml.tokens is missing");
    require(types == nullptr || types->size() == tokens->size(),
            "tokenizer: tokenizer.ggml.token_type has {} entries, expected {}", types == nullptr ? 0 : types->size(),
            tokens->size());
    texts_ = *tokens;
    types_ = types == nullptr ? std::vector<int64_t>(tokens->size(), kNormal) : *types;
    for (size_t id = 0; id < texts_.size(); ++id) {
      const bool special = types_[id] == kControl || types_[id] == kUnknown;
      if ((!special && types_[id] != kUserDefined) || texts_[id].empty()) continue;
      // Added tokens are searched in the text as they are, so half a character would cut one in two.
      require(find_invalid_utf8(texts_[id]) == std::string::npos, "tokenizer: token {} is no valid UTF-8", id);
      source_.added.push_back({.text = texts_[id], .id = static_cast<int32_t>(id), .special = special});
    }
  }

  void finish_vocabulary() {
    std::unordered_set<std::string_view> seen;
    for (const std::string& token : texts_)
      require(seen.insert(token).second, "tokenizer: token \"{}\" comes twice", printable(token));
    source_.vocabulary = std::make_shared<const Vocabulary>(std::move(texts_));
  }

  void surround(std::optional<int32_t> bos, bool add_bos, std::optional<int32_t> eos, bool add_eos) {
    source_.bos = bos;
    if (is_on("add_bos_token", add_bos) && bos) source_.front.push_back(*bos);
    if (is_on("add_eos_token", add_eos) && eos) source_.back.push_back(*eos);
  }

  void read_byte_level() {
    const auto* merges = find<std::vector<std::string>>("merges");
    require(merges != nullptr, "tokenizer: tokenizer.ggml.merges is missing");
    for (size_t id = 0; id < texts_.size(); ++id)
      if (types_[id] != kControl && types_[id] != kUserDefined) texts_[id] = bytes_of_spelling(texts_[id]);
    finish_vocabulary();
    const auto* name = find<std::string>("pre");
    auto pre = gguf_pre_tokenizer(name == nullptr ? "default" : *name, is_on("add_space_prefix", false));
    source_.normalizer = std::move(pre.normalizer);
    source_.pre_tokenizer = std::move(pre.pre_tokenizer);
    std::vector<std::pair<std::string, std::string>> pairs;
    for (const std::string& merge : *merges) {
      const auto [left, right] = split_merge(merge);
      pairs.emplace_back(bytes_of_spelling(left), bytes_of_spelling(right));
    }
    source_.encoder = std::make_unique<BytePairEncoder>(
        source_.vocabulary, MergeRules::of_pairs(*source_.vocabulary, pairs),
        BytePairEncoder::Options{.symbols = BytePairEncoder::Options::Symbols::bytes, .whole_words = pre.whole_words});
    surround(find_id("bos_token_id"), pre.add_bos, find_id("eos_token_id"), false);
  }

  // What both kinds of SentencePiece's models share. Returns the scores of the tokens that text can become.
  std::vector<std::optional<double>> read_pieces(bool add_space_prefix) {
    const auto* scores = find<std::vector<double>>("scores");
    require(scores != nullptr && scores->size() == texts_.size(),
            "tokenizer: tokenizer.ggml.scores has {} entries, expected {} in a model \"{}\"",
            scores == nullptr ? 0 : scores->size(), texts_.size(), *find<std::string>("model"));
    std::vector<std::optional<double>> usable(texts_.size());
    for (size_t id = 0; id < texts_.size(); ++id) {
      require(find_invalid_utf8(texts_[id]) == std::string::npos, "tokenizer: token {} is no valid UTF-8", id);
      require(std::isfinite((*scores)[id]), "tokenizer: the score of token {} is {}, expected a finite number", id,
              (*scores)[id]);
      if (types_[id] == kNormal || types_[id] == kUnused) usable[id] = (*scores)[id];
    }
    finish_vocabulary();
    source_.normalizer.add(normalizers::replace(Pattern(" "), kSpaceMark));
    if (add_space_prefix) source_.normalizer.add(normalizers::prepend(kSpaceMark));
    source_.decoder.add(decoders::replace(kSpaceMark, " "));
    source_.decoder.add(decoders::byte_fallback());
    if (add_space_prefix) source_.decoder.add(decoders::first_only(decoders::strip(" ", 1, 0)));
    return usable;
  }

  [[nodiscard]] bool has_bytes() const { return std::ranges::find(types_, kByte) != types_.end(); }

  void read_sentence_piece() {
    require(!is_on("remove_extra_whitespaces", false),
            "tokenizer: tokenizer.ggml.remove_extra_whitespaces is true, expected false in a model \"llama\"");
    const auto scores = read_pieces(is_on("add_space_prefix", true));
    const auto unknown = find_id("unknown_token_id", 0);
    source_.encoder = std::make_unique<BytePairEncoder>(
        source_.vocabulary, MergeRules::of_scores(*source_.vocabulary, scores),
        BytePairEncoder::Options{.symbols = BytePairEncoder::Options::Symbols::characters,
                                 .unknown = {.bytes = has_bytes(), .token = unknown, .fuse = true}});
    surround(find_id("bos_token_id", 1), true, find_id("eos_token_id", 2), false);
  }

  void read_unigram() {
    if (const auto* table = find<std::vector<int64_t>>("precompiled_charsmap")) {
      std::string bytes;
      for (const int64_t byte : *table) bytes += static_cast<char>(byte);
      source_.normalizer.add(normalizers::charsmap(bytes));
    }
    if (is_on("remove_extra_whitespaces", false)) {
      source_.normalizer.add(normalizers::strip(true, true));
      source_.normalizer.add(normalizers::replace(Pattern(" {2,}"), " "));
    }
    const auto scores = read_pieces(is_on("add_space_prefix", false));
    const auto unknown = find_id("unknown_token_id", 2);
    require(unknown.has_value(), "tokenizer: tokenizer.ggml.unknown_token_id is missing");
    source_.encoder = std::make_unique<UnigramEncoder>(
        source_.vocabulary, scores, UnknownText{.bytes = has_bytes(), .token = unknown, .fuse = true});
    surround(find_id("bos_token_id"), false, find_id("eos_token_id", 1), true);
  }

  void read_end_tokens() {
    const auto add = [&](std::optional<int32_t> id) {
      if (id && std::ranges::find(source_.end_tokens, *id) == source_.end_tokens.end())
        source_.end_tokens.push_back(*id);
    };
    for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) add(find_id(key));
    // A file that names no end has none.
    if (source_.end_tokens.empty()) return;
    const auto control = [&](std::string_view text) -> std::optional<int32_t> {
      const int32_t id = source_.vocabulary->find(text);
      return id >= 0 && types_[static_cast<size_t>(id)] == kControl ? std::optional(id) : std::nullopt;
    };
    // In gpt-oss "<|end|>" ends a message, and "<|return|>" or "<|call|>" the answer.
    const bool harmony = control("<|return|>") && control("<|call|>");
    for (const std::string_view text : kEndTexts)
      if (!harmony || text != "<|end|>") add(control(text));
  }

  const Checkpoint& checkpoint_;
  TokenizerSource source_;
  std::vector<std::string> texts_;  // moved into the vocabulary by finish_vocabulary
  std::vector<int64_t> types_;
};

}  // namespace

TokenizerSource read_gguf_tokenizer(const Checkpoint& checkpoint) { return GgufReader(checkpoint).read(); }

}  // namespace regard
