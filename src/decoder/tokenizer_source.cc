#include "decoder/tokenizer_source.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "decoder/utf8.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Json = nlohmann::json;

// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and on, in order.
const std::unordered_map<uint32_t, char>& alphabet() {
  static const std::unordered_map<uint32_t, char> kAlphabet = [] {
    std::unordered_map<uint32_t, char> letters;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      letters[printable ? byte : next++] = static_cast<char>(byte);
    }
    return letters;
  }();
  return kAlphabet;
}

std::pair<std::string, std::string> split_merge(const std::string& merge) {
  const size_t space = merge.find(' ');
  require(space != std::string::npos && space > 0 && space + 1 < merge.size() &&
              merge.find(' ', space + 1) == std::string::npos,
          "tokenizer: a merge is \"{}\", expected two tokens and a space between them", merge.substr(0, 80));
  return {bytes_of_spelling(merge.substr(0, space)), bytes_of_spelling(merge.substr(space + 1))};
}

void check_distinct(const std::vector<std::string>& tokens) {
  std::unordered_set<std::string_view> seen;
  for (const std::string& token : tokens)
    require(seen.insert(token).second, "tokenizer: token \"{}\" comes twice", token.substr(0, 80));
}

// ---- GGUF ----

template <class T>
const T* find_value(const Checkpoint& checkpoint, const std::string& key) {
  const auto found = checkpoint.metadata().find("tokenizer.ggml." + key);
  if (found == checkpoint.metadata().end()) return nullptr;
  const T* value = std::get_if<T>(&found->second);
  require(value != nullptr, "tokenizer: tokenizer.ggml.{} is of the wrong kind", key);
  return value;
}

std::optional<int32_t> find_token(const Checkpoint& checkpoint, const std::string& key, size_t vocabulary) {
  const auto* id = find_value<int64_t>(checkpoint, key);
  if (id == nullptr) return std::nullopt;
  require(*id >= 0 && static_cast<size_t>(*id) < vocabulary, "tokenizer: tokenizer.ggml.{} is {}, expected 0 to {}",
          key, *id, vocabulary - 1);
  return static_cast<int32_t>(*id);
}

// ---- tokenizer.json ----

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : root_(Json::parse(text, nullptr, false)) {
    require(root_.is_object(), "tokenizer: tokenizer.json is no valid JSON object");
  }

  TokenizerSource read() {
    try {
      require(!root_.contains("normalizer") || root_["normalizer"].is_null(),
              "tokenizer: normalizer is {}, expected none", root_["normalizer"].dump().substr(0, 80));
      const Json& model = root_.at("model");
      require(model.value("type", "BPE") == "BPE", "tokenizer: the model is {}, expected BPE", model.at("type").dump());
      for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        const Json value = model.contains(affix) ? model[affix] : Json();
        require(value.is_null() || value == "", "tokenizer: {} is {}, expected none", affix,
                value.dump().substr(0, 80));
      }
      source_.whole_words = model.value("ignore_merges", false);
      read_vocabulary(model.at("vocab"));
      read_merges(model.at("merges"));
      if (root_.contains("pre_tokenizer") && root_["pre_tokenizer"].is_object())
        read_pre_tokenizer(root_["pre_tokenizer"]);
      require(byte_level_, "tokenizer: there is no ByteLevel pre-tokenizer, and other kinds are not read");
      if (root_.contains("post_processor") && root_["post_processor"].is_object())
        read_post_processor(root_["post_processor"]);
    } catch (const Json::exception&) {
      fail("tokenizer: tokenizer.json lacks a part or has one of the wrong kind");
    }
    return std::move(source_);
  }

 private:
  // Ids may leave gaps, but not many: memory is asked for up to the highest.
  void set_token(int64_t id, std::string bytes) {
    constexpr int64_t kMostTokens = 10'000'000;
    require(id >= 0 && id < kMostTokens, "tokenizer: a token has id {}, expected 0 to {}", id, kMostTokens - 1);
    if (static_cast<size_t>(id) >= source_.tokens.size()) source_.tokens.resize(static_cast<size_t>(id) + 1);
    source_.tokens[static_cast<size_t>(id)] = std::move(bytes);
  }

  void read_vocabulary(const Json& vocabulary) {
    for (const auto& [spelling, id] : vocabulary.items()) set_token(id.get<int64_t>(), bytes_of_spelling(spelling));
    if (!root_.contains("added_tokens")) return;
    for (const Json& token : root_["added_tokens"]) {
      AddedToken added{.text = token.at("content").get<std::string>(),
                       .id = token.at("id").get<int32_t>(),
                       .special = token.value("special", false),
                       .strip_left = token.value("lstrip", false),
                       .strip_right = token.value("rstrip", false),
                       .single_word = token.value("single_word", false)};
      require(!added.text.empty(), "tokenizer: an added token is empty");
      set_token(added.id, added.text);
      source_.added.push_back(std::move(added));
    }
  }

  void read_merges(const Json& merges) {
    for (const Json& merge : merges)
      source_.merges.push_back(merge.is_string() ? split_merge(merge.get<std::string>())
                                                 : std::pair{bytes_of_spelling(merge.at(0).get<std::string>()),
                                                             bytes_of_spelling(merge.at(1).get<std::string>())});
  }

  void read_pre_tokenizer(const Json& step, int depth = 0) {
    using Behavior = PreTokenizer::Behavior;
    require(depth < 8, "tokenizer: pre-tokenizers are nested more than 8 deep");
    const auto type = step.at("type").get<std::string>();
    if (type == "Sequence") {
      for (const Json& inner : step.at("pretokenizers")) read_pre_tokenizer(inner, depth + 1);
      return;
    }
    // What comes behind ByteLevel would see its spelling instead of the text.
    require(!byte_level_, "tokenizer: the pre-tokenizer \"{}\" comes behind ByteLevel, expected nothing there",
            type.substr(0, 80));
    if (type == "ByteLevel") {
      byte_level_ = true;
      source_.add_prefix_space = step.value("add_prefix_space", true);
      require(
          !source_.add_prefix_space || !splits_,
          "tokenizer: ByteLevel puts a space before each piece of an earlier pre-tokenizer, which is not understood");
      if (step.value("use_regex", true)) source_.pre_tokenizer.add_split(kGpt2Pattern, Behavior::isolated);
    } else if (type == "Digits") {
      source_.pre_tokenizer.add_split(
          "\\p{N}", step.value("individual_digits", false) ? Behavior::isolated : Behavior::contiguous);
    } else if (type == "Split") {
      read_split(step);
    } else {
      fail("tokenizer: the pre-tokenizer \"{}\" is not known", type.substr(0, 80));
    }
    splits_ = true;
  }

  void read_split(const Json& step) {
    using Behavior = PreTokenizer::Behavior;
    static const std::unordered_map<std::string, Behavior> kBehaviors = {
        {"Removed", Behavior::removed},
        {"Isolated", Behavior::isolated},
        {"MergedWithPrevious", Behavior::merged_with_previous},
        {"MergedWithNext", Behavior::merged_with_next},
        {"Contiguous", Behavior::contiguous}};
    const Json& pattern = step.at("pattern");
    std::string regex;
    if (pattern.contains("Regex")) {
      regex = pattern["Regex"].get<std::string>();
    } else {
      // A plain string: every character that means something to a pattern is escaped.
      for (const char c : pattern.at("String").get<std::string>()) {
        if (static_cast<uint8_t>(c) < 0x80 && std::isalnum(static_cast<uint8_t>(c)) == 0) regex += '\\';
        regex += c;
      }
    }
    const auto behavior = kBehaviors.find(step.at("behavior").get<std::string>());
    require(behavior != kBehaviors.end(), "tokenizer: the split behavior {} is not known",
            step.at("behavior").dump().substr(0, 80));
    source_.pre_tokenizer.add_split(regex, behavior->second, step.value("invert", false));
  }

  // All that matters of post-processing here is a BOS in front.
  void read_post_processor(const Json& processor) {
    const auto type = processor.at("type").get<std::string>();
    if (type == "Sequence") {
      for (const Json& inner : processor.at("processors")) read_post_processor(inner);
    } else if (type == "TemplateProcessing") {
      const Json& first = processor.at("single").at(0);
      if (!first.contains("SpecialToken")) return;
      const auto text = first["SpecialToken"].at("id").get<std::string>();
      for (const AddedToken& token : source_.added)
        if (token.text == text) source_.bos = token.id;
      require(source_.bos.has_value(), "tokenizer: the template puts \"{}\" in front, which is no added token",
              text.substr(0, 80));
      source_.add_bos = true;
    }
  }

  Json root_;
  TokenizerSource source_;
  bool splits_ = false;      // a pre-tokenizer was read
  bool byte_level_ = false;  // ByteLevel was
};

}  // namespace

std::string bytes_of_spelling(std::string_view spelling) {
  require(find_invalid_utf8(spelling) == std::string_view::npos, "tokenizer: a token is no valid UTF-8");
  std::string bytes;
  for (size_t at = 0; at < spelling.size();) {
    const uint32_t code_point = next_code_point(spelling, at);
    const auto letter = alphabet().find(code_point);
    if (letter == alphabet().end())
      append_utf8(code_point, bytes);
    else
      bytes += letter->second;
  }
  return bytes;
}

TokenizerSource read_gguf_tokenizer(const Checkpoint& checkpoint) {
  const auto* model = find_value<std::string>(checkpoint, "model");
  require(model != nullptr, "tokenizer: {} holds no tokenizer", checkpoint.path().string());
  require(*model == "gpt2", "tokenizer: tokenizer.ggml.model is \"{}\", expected \"gpt2\" (byte-level BPE)",
          model->substr(0, 80));
  const auto* tokens = find_value<std::vector<std::string>>(checkpoint, "tokens");
  const auto* merges = find_value<std::vector<std::string>>(checkpoint, "merges");
  const auto* types = find_value<std::vector<int64_t>>(checkpoint, "token_type");
  require(tokens != nullptr && merges != nullptr && !tokens->empty(),
          "tokenizer: tokenizer.ggml.tokens or tokenizer.ggml.merges is missing");
  require(types == nullptr || types->size() == tokens->size(),
          "tokenizer: tokenizer.ggml.token_type has {} entries, expected {}", types == nullptr ? 0 : types->size(),
          tokens->size());
  TokenizerSource source;
  for (size_t id = 0; id < tokens->size(); ++id) {
    constexpr int64_t kControl = 3;
    constexpr int64_t kUserDefined = 4;
    const int64_t type = types == nullptr ? 1 : (*types)[id];
    const std::string& text = (*tokens)[id];
    const bool added = (type == kControl || type == kUserDefined) && !text.empty();
    if (added) source.added.push_back({.text = text, .id = static_cast<int32_t>(id), .special = type == kControl});
    source.tokens.push_back(added ? text : bytes_of_spelling(text));
  }
  check_distinct(source.tokens);
  for (const std::string& merge : *merges) source.merges.push_back(split_merge(merge));
  const auto* pre = find_value<std::string>(checkpoint, "pre");
  source.pre_tokenizer = gguf_pre_tokenizer(pre == nullptr ? "default" : *pre);
  source.bos = find_token(checkpoint, "bos_token_id", tokens->size());
  const auto* add_bos = find_value<bool>(checkpoint, "add_bos_token");
  source.add_bos = add_bos != nullptr && *add_bos && source.bos.has_value();
  const auto* add_prefix = find_value<bool>(checkpoint, "add_space_prefix");
  source.add_prefix_space = add_prefix != nullptr && *add_prefix;
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const auto id = find_token(checkpoint, key, tokens->size());
    if (id && std::ranges::find(source.end_tokens, *id) == source.end_tokens.end()) source.end_tokens.push_back(*id);
  }
  return source;
}

TokenizerSource read_tokenizer_json(std::string_view json) { return JsonReader(json).read(); }

}  // namespace regard
