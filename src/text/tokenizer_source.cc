#include "text/tokenizer_source.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "checkpoint/json_shown.h"
#include "tensor/fail.h"
#include "text/utf8.h"

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
          "tokenizer: a merge is \"{}\", expected two tokens and a space between them", printable(merge));
  return {bytes_of_spelling(merge.substr(0, space)), bytes_of_spelling(merge.substr(space + 1))};
}

void check_distinct(const std::vector<std::string>& tokens) {
  std::unordered_set<std::string_view> seen;
  for (const std::string& token : tokens)
    require(seen.insert(token).second, "tokenizer: token \"{}\" comes twice", printable(token));
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

// Sequences inside sequences: real files have two.
constexpr int kMostNested = 8;

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : root_(Json::parse(text, nullptr, false)) {
    require(root_.is_object(), "tokenizer: tokenizer.json is no valid JSON object");
  }

  TokenizerSource read() {
    try {
      require(!root_.contains("normalizer") || root_["normalizer"].is_null(),
              "tokenizer: there is a normalizer, expected none");
      const Json& model = root_.at("model");
      const auto type = model.value("type", "BPE");
      require(type == "BPE", "tokenizer: the model is \"{}\", expected BPE", printable(type));
      for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        const auto value = model.find(affix);
        if (value != model.end())
          require(value->is_null() || *value == "", "tokenizer: {} is {}, expected none", affix, shown(*value));
      }
      source_.whole_words = model.value("ignore_merges", false);
      read_vocabulary(model.at("vocab"));
      require(!source_.tokens.empty(), "tokenizer: there are no tokens");
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
  int32_t token_id(const Json& id) const {
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
    if (static_cast<size_t>(id) >= source_.tokens.size()) source_.tokens.resize(static_cast<size_t>(id) + 1);
    return source_.tokens[static_cast<size_t>(id)];
  }

  void read_vocabulary(const Json& vocabulary) {
    require(vocabulary.is_object(), "tokenizer: the vocab is an {}, expected an object", vocabulary.type_name());
    for (const auto& [spelling, value] : vocabulary.items()) {
      const int32_t id = token_id(value);
      std::string& bytes = token(id);
      require(bytes.empty(), "tokenizer: id {} comes twice", id);
      bytes = bytes_of_spelling(spelling);
    }
    if (added_count() == 0) return;
    for (const Json& entry : root_["added_tokens"]) {
      AddedToken added{.text = entry.at("content").get<std::string>(),
                       .id = token_id(entry.at("id")),
                       .special = entry.value("special", false),
                       .strip_left = entry.value("lstrip", false),
                       .strip_right = entry.value("rstrip", false),
                       .single_word = entry.value("single_word", false)};
      require(!added.text.empty(), "tokenizer: an added token is empty");
      token(added.id) = added.text;
      source_.added.push_back(std::move(added));
    }
  }

  void read_merges(const Json& merges) {
    require(merges.is_array(), "tokenizer: the merges are an {}, expected a list", merges.type_name());
    for (const Json& merge : merges) {
      if (merge.is_string()) {
        source_.merges.push_back(split_merge(merge.get<std::string>()));
        continue;
      }
      require(merge.is_array() && merge.size() == 2, "tokenizer: a merge is no pair of tokens");
      source_.merges.emplace_back(bytes_of_spelling(merge[0].get<std::string>()),
                                  bytes_of_spelling(merge[1].get<std::string>()));
    }
  }

  void read_pre_tokenizer(const Json& step, int depth = 0) {
    using Behavior = PreTokenizer::Behavior;
    require(depth < kMostNested, "tokenizer: pre-tokenizers are nested more than {} deep", kMostNested);
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
      fail("tokenizer: the pre-tokenizer \"{}\" is not known", printable(type));
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
    const auto name = step.at("behavior").get<std::string>();
    const auto behavior = kBehaviors.find(name);
    require(behavior != kBehaviors.end(), "tokenizer: the split behavior \"{}\" is not known", printable(name));
    source_.pre_tokenizer.add_split(regex, behavior->second, step.value("invert", false));
  }

  // All that matters of post-processing here is a BOS in front.
  void read_post_processor(const Json& processor, int depth = 0) {
    require(depth < kMostNested, "tokenizer: post-processors are nested more than {} deep", kMostNested);
    const auto type = processor.at("type").get<std::string>();
    if (type == "Sequence") {
      for (const Json& inner : processor.at("processors")) read_post_processor(inner, depth + 1);
    } else if (type == "TemplateProcessing") {
      const Json& first = processor.at("single").at(0);
      if (!first.contains("SpecialToken")) return;
      const auto text = first["SpecialToken"].at("id").get<std::string>();
      for (const AddedToken& token : source_.added)
        if (token.text == text) source_.bos = token.id;
      require(source_.bos.has_value(), "tokenizer: the template puts \"{}\" in front, which is no added token",
              printable(text));
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
          printable(*model));
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
    // Added tokens are searched in the text as they are, so half a character would cut one in two.
    require(!added || find_invalid_utf8(text) == std::string::npos, "tokenizer: token {} is no valid UTF-8", id);
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
