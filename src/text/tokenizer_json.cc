#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "checkpoint/json_shown.h"
#include "tensor/fail.h"
#include "text/byte_alphabet.h"
#include "text/byte_pair_encoder.h"
#include "text/json_steps.h"
#include "text/tokenizer_source.h"
#include "text/unigram_encoder.h"

namespace regard {
namespace {

using Json = nlohmann::json;

// A switch that is off where it is missing or null.
bool is_on(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && !found->is_null() && found->get<bool>();
}

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : root_(Json::parse(text, nullptr, false)) {
    require(root_.is_object(), "tokenizer: tokenizer.json is no valid JSON object");
  }

  TokenizerSource read() {
    try {
      // "truncation" and "padding" are what the file's maker did last; transformers ignores them as well.
      check_keys(root_, "tokenizer.json",
                 {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                  "decoder", "model"});
      const Json& model = root_.at("model");
      if (const Json* normalizer = part("normalizer")) read_normalizer(*normalizer, source_.normalizer);
      if (const Json* pre = part("pre_tokenizer")) byte_level_ = read_pre_tokenizer(*pre, source_.pre_tokenizer);
      const auto type = model.value("type", "BPE");
      require(type == "BPE" || type == "Unigram", "tokenizer: the model is \"{}\", expected BPE or Unigram",
              printable(type));
      type == "BPE" ? read_bpe(model) : read_unigram(model);
      if (const Json* post = part("post_processor")) read_post_processor(*post, source_);
      if (!source_.front.empty()) source_.bos = source_.front.front();
      const Json* decoder = part("decoder");
      require(decoder != nullptr || byte_level_, "tokenizer: there is no decoder, which only ByteLevel can do without");
      if (decoder != nullptr) read_decoder(*decoder, byte_level_, source_.decoder);
    } catch (const Json::exception&) {
      fail("tokenizer: tokenizer.json lacks a part or has one of the wrong kind");
    }
    return std::move(source_);
  }

 private:
  // A part of the file, or nullptr where it is missing or null.
  [[nodiscard]] const Json* part(const char* key) const {
    const auto found = root_.find(key);
    return found == root_.end() || found->is_null() ? nullptr : &*found;
  }

  // How the vocabulary spells a token.
  [[nodiscard]] std::string text_of(const std::string& spelling) const {
    return byte_level_ ? bytes_of_spelling(spelling) : spelling;
  }

  // Ids may leave gaps, but not many: memory is asked for up to the highest.
  [[nodiscard]] int32_t token_id(const Json& id) const {
    constexpr size_t kGaps = 4096;
    const size_t entries = root_["model"]["vocab"].size() + added_count();
    const size_t limit = std::min<size_t>(4 * entries + kGaps, std::numeric_limits<int32_t>::max());
    require(id.is_number_integer(), "tokenizer: a token's id is {}, expected an integer", shown(id));
    require(id.is_number_unsigned() && id.get<uint64_t>() < limit,
            "tokenizer: a token has id {}, expected 0 to {} in a file of {} tokens", id.dump(), limit - 1, entries);
    return id.get<int32_t>();
  }

  [[nodiscard]] size_t added_count() const { return root_.contains("added_tokens") ? root_["added_tokens"].size() : 0; }

  std::string& token(int32_t id) {
    if (static_cast<size_t>(id) >= tokens_.size()) tokens_.resize(static_cast<size_t>(id) + 1);
    return tokens_[static_cast<size_t>(id)];
  }

  void read_bpe(const Json& model) {
    check_keys(model, "BPE",
               {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                "byte_fallback", "ignore_merges", "vocab", "merges"});
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const auto value = model.find(affix);
      if (value != model.end())
        require(value->is_null() || *value == "", "tokenizer: {} is {}, expected none", affix, shown(*value));
    }
    const auto dropout = model.find("dropout");
    if (dropout != model.end())
      require(dropout->is_null() || *dropout == 0, "tokenizer: dropout is {}, expected none", shown(*dropout));
    const Json& vocabulary = model.at("vocab");
    require(vocabulary.is_object(), "tokenizer: the vocab is an {}, expected an object", vocabulary.type_name());
    for (const auto& [spelling, value] : vocabulary.items()) {
      const int32_t id = token_id(value);
      std::string& text = token(id);
      require(text.empty(), "tokenizer: id {} comes twice", id);
      text = text_of(spelling);
    }
    finish_vocabulary();
    BytePairEncoder::Options options = {.whole_words = is_on(model, "ignore_merges")};
    using Symbols = BytePairEncoder::Options::Symbols;
    options.symbols = byte_level_ ? Symbols::bytes : Symbols::characters;
    options.unknown = unknown_of(model);
    require(byte_level_ || options.unknown.bytes || options.unknown.token,
            "tokenizer: there is no ByteLevel pre-tokenizer, no byte_fallback and no unk_token, expected one of them");
    source_.encoder = std::make_unique<BytePairEncoder>(
        source_.vocabulary, MergeRules::of_pairs(*source_.vocabulary, merges_of(model.at("merges"))), options);
  }

  [[nodiscard]] UnknownText unknown_of(const Json& model) const {
    UnknownText unknown = {.bytes = is_on(model, "byte_fallback"), .fuse = is_on(model, "fuse_unk")};
    const auto text = model.find("unk_token");
    if (text == model.end() || text->is_null()) return unknown;
    const int32_t id = source_.vocabulary->find(text_of(text->get<std::string>()));
    require(id >= 0, "tokenizer: unk_token is {}, which is no token", shown(*text));
    unknown.token = id;
    return unknown;
  }

  [[nodiscard]] std::vector<std::pair<std::string, std::string>> merges_of(const Json& merges) const {
    require(merges.is_array(), "tokenizer: the merges are an {}, expected a list", merges.type_name());
    std::vector<std::pair<std::string, std::string>> pairs;
    for (const Json& merge : merges) {
      require(merge.is_string() || (merge.is_array() && merge.size() == 2), "tokenizer: a merge is no pair of tokens");
      const auto [left, right] = merge.is_string()
                                     ? split_merge(merge.get<std::string>())
                                     : std::pair(merge[0].get<std::string>(), merge[1].get<std::string>());
      pairs.emplace_back(text_of(left), text_of(right));
    }
    return pairs;
  }

  void read_unigram(const Json& model) {
    check_keys(model, "Unigram", {"type", "unk_id", "vocab", "byte_fallback"});
    require(!byte_level_, "tokenizer: the model is Unigram behind ByteLevel, which is not understood");
    const Json& vocabulary = model.at("vocab");
    require(vocabulary.is_array(), "tokenizer: the vocab is an {}, expected a list", vocabulary.type_name());
    std::vector<std::optional<double>> scores;
    for (const Json& entry : vocabulary) {
      require(entry.is_array() && entry.size() == 2 && entry[1].is_number(),
              "tokenizer: token {} of the vocab is no pair of a text and a score", tokens_.size());
      tokens_.push_back(entry[0].get<std::string>());
      scores.emplace_back(entry[1].get<double>());
    }
    const Json& unknown = model.at("unk_id");
    require(unknown.is_number_unsigned() && unknown.get<uint64_t>() < tokens_.size(),
            "tokenizer: unk_id is {}, expected 0 to {}", shown(unknown), tokens_.empty() ? 0 : tokens_.size() - 1);
    finish_vocabulary();
    scores.resize(source_.vocabulary->tokens().size());
    source_.encoder = std::make_unique<UnigramEncoder>(
        source_.vocabulary, scores,
        UnknownText{.bytes = is_on(model, "byte_fallback"), .token = unknown.get<int32_t>(), .fuse = true});
  }

  // The added tokens, and all of them together.
  void finish_vocabulary() {
    if (added_count() > 0) read_added_tokens(root_["added_tokens"]);
    require(!tokens_.empty(), "tokenizer: there are no tokens");
    source_.vocabulary = std::make_shared<const Vocabulary>(std::move(tokens_));
  }

  void read_added_tokens(const Json& added_tokens) {
    for (const Json& entry : added_tokens) {
      check_keys(entry, "an added token",
                 {"id", "content", "special", "lstrip", "rstrip", "single_word", "normalized"});
      const bool special = entry.value("special", false);
      AddedToken added{.text = entry.at("content").get<std::string>(),
                       .id = token_id(entry.at("id")),
                       .special = special,
                       .strip_left = entry.value("lstrip", false),
                       .strip_right = entry.value("rstrip", false),
                       .single_word = entry.value("single_word", false),
                       .normalized = entry.value("normalized", !special)};
      require(!added.text.empty(), "tokenizer: an added token is empty");
      token(added.id) = added.normalized ? source_.normalizer.normalize(added.text) : added.text;
      source_.added.push_back(std::move(added));
    }
  }

  Json root_;
  TokenizerSource source_;
  std::vector<std::string> tokens_;
  bool byte_level_ = false;
};

}  // namespace

std::pair<std::string, std::string> split_merge(const std::string& merge) {
  const size_t space = merge.find(' ');
  require(space != std::string::npos && space > 0 && space + 1 < merge.size() &&
              merge.find(' ', space + 1) == std::string::npos,
          "tokenizer: a merge is \"{}\", expected two tokens and a space between them", printable(merge));
  return {merge.substr(0, space), merge.substr(space + 1)};
}

TokenizerSource read_tokenizer_json(std::string_view json) { return JsonReader(json).read(); }

}  // namespace regard
