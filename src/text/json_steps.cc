#include "text/json_steps.h"

#include <algorithm>
#include <unordered_map>

#include "checkpoint/json_shown.h"
#include "tensor/fail.h"
#include "text/charsmap.h"

namespace regard {
namespace {

using Json = nlohmann::json;
using Behavior = PreTokenizer::Behavior;

// Calls read(type, step) for a step, or for those of a Sequence, in order; `list` is the key of a Sequence's steps.
template <class Read>
void for_each_step(const Json& step, std::string_view what, const char* list, const Read& read, int depth = 0) {
  // Sequences inside sequences: real files have two.
  constexpr int kMostNested = 8;
  require(depth < kMostNested, "tokenizer: {}s are nested more than {} deep", what, kMostNested);
  require(step.is_object(), "tokenizer: the {} is {}, expected an object", what, shown(step));
  const auto type = step.at("type").get<std::string>();
  if (type == "Sequence") {
    check_keys(step, what, {"type", list});
    for (const Json& inner : step.at(list)) for_each_step(inner, what, list, read, depth + 1);
  } else {
    read(type, step);
  }
}

[[noreturn]] void fail_unknown(std::string_view what, const std::string& type) {
  fail("tokenizer: the {} \"{}\" is not known", what, printable(type));
}

Pattern pattern_of(const Json& pattern) {
  check_keys(pattern, "pattern", {"String", "Regex"});
  if (pattern.contains("Regex")) return Pattern(pattern["Regex"].get<std::string>());
  return Pattern::of_text(pattern.at("String").get<std::string>());
}

Behavior behavior_of(const Json& behavior) {
  static const std::unordered_map<std::string, Behavior> kBehaviors = {
      {"Removed", Behavior::removed},
      {"Isolated", Behavior::isolated},
      {"MergedWithPrevious", Behavior::merged_with_previous},
      {"MergedWithNext", Behavior::merged_with_next},
      {"Contiguous", Behavior::contiguous}};
  const auto name = behavior.get<std::string>();
  const auto found = kBehaviors.find(name);
  require(found != kBehaviors.end(), "tokenizer: the split behavior \"{}\" is not known", printable(name));
  return found->second;
}

struct Metaspace {
  std::string mark;
  PreTokenizer::Prepend prepend;
  bool split;
};

Metaspace metaspace_of(const Json& step) {
  using Prepend = PreTokenizer::Prepend;
  check_keys(step, "Metaspace", {"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  // Older files say add_prefix_space instead.
  const bool adds = step.value("add_prefix_space", true);
  const auto scheme = step.value("prepend_scheme", adds ? "always" : "never");
  static const std::unordered_map<std::string, Prepend> kSchemes = {
      {"always", Prepend::always}, {"first", Prepend::first}, {"never", Prepend::never}};
  const auto found = kSchemes.find(scheme);
  require(found != kSchemes.end(), "tokenizer: Metaspace's prepend_scheme \"{}\" is not known", printable(scheme));
  return {step.at("replacement").get<std::string>(), found->second, step.value("split", true)};
}

class PreTokenizerReader {
 public:
  explicit PreTokenizerReader(PreTokenizer& out) : out_(out) {}

  void read(const std::string& type, const Json& step) {
    // What comes behind ByteLevel would see its spelling instead of the text.
    require(!byte_level_, "tokenizer: the pre-tokenizer \"{}\" comes behind ByteLevel, expected nothing there",
            type.substr(0, 80));
    static const std::unordered_map<std::string, void (PreTokenizerReader::*)(const Json&)> kReaders = {
        {"ByteLevel", &PreTokenizerReader::read_byte_level},
        {"Split", &PreTokenizerReader::read_split},
        {"Digits", &PreTokenizerReader::read_digits},
        {"Metaspace", &PreTokenizerReader::read_metaspace},
        {"Punctuation", &PreTokenizerReader::read_punctuation},
        {"Whitespace", &PreTokenizerReader::read_whitespace},
        {"WhitespaceSplit", &PreTokenizerReader::read_whitespace_split},
        {"CharDelimiterSplit", &PreTokenizerReader::read_delimiter}};
    const auto found = kReaders.find(type);
    if (found == kReaders.end()) fail_unknown("pre-tokenizer", type);
    (this->*found->second)(step);
    splits_ = true;
  }

  [[nodiscard]] bool byte_level() const { return byte_level_; }

 private:
  void read_byte_level(const Json& step) {
    check_keys(step, "ByteLevel", {"type", "add_prefix_space", "use_regex", "trim_offsets"});
    byte_level_ = true;
    const bool prefix = step.value("add_prefix_space", true);
    require(!prefix || !splits_,
            "tokenizer: ByteLevel puts a space before each piece of an earlier pre-tokenizer, which is not understood");
    if (prefix) out_.add_prefix_space();
    if (step.value("use_regex", true)) out_.add_split(kGpt2Pattern, Behavior::isolated);
  }

  void read_split(const Json& step) {
    check_keys(step, "Split", {"type", "pattern", "behavior", "invert"});
    out_.add_split(pattern_of(step.at("pattern")), behavior_of(step.at("behavior")), step.value("invert", false));
  }

  void read_digits(const Json& step) {
    check_keys(step, "Digits", {"type", "individual_digits"});
    out_.add_split("\\p{N}", step.value("individual_digits", false) ? Behavior::isolated : Behavior::contiguous);
  }

  void read_metaspace(const Json& step) {
    const Metaspace metaspace = metaspace_of(step);
    out_.add_metaspace(metaspace.mark, metaspace.prepend, metaspace.split);
  }

  void read_punctuation(const Json& step) {
    check_keys(step, "Punctuation", {"type", "behavior"});
    out_.add_split(R"([\p{P}!-/:-@\[-`{-~])", behavior_of(step.value("behavior", Json("Isolated"))));
  }

  void read_whitespace(const Json& step) {
    check_keys(step, "Whitespace", {"type"});
    constexpr const char* kWord = R"(\p{L}\p{Nl}\p{Nd}\p{M}\p{Pc}\x{200C}\x{200D})";
    out_.add_split(fmt::format(R"([{}]+|[^{}\s]+)", kWord, kWord), Behavior::removed, true);
  }

  void read_whitespace_split(const Json& step) {
    check_keys(step, "WhitespaceSplit", {"type"});
    out_.add_split("\\s", Behavior::removed);
  }

  void read_delimiter(const Json& step) {
    check_keys(step, "CharDelimiterSplit", {"type", "delimiter"});
    out_.add_split(Pattern::of_text(step.at("delimiter").get<std::string>()), Behavior::removed);
  }

  PreTokenizer& out_;
  bool splits_ = false;  // an earlier step was read
  bool byte_level_ = false;
};

class PostProcessorReader {
 public:
  explicit PostProcessorReader(TokenizerSource& source) : source_(source) {}

  void read(const std::string& type, const Json& step) {
    if (type == "TemplateProcessing") {
      check_keys(step, type, {"type", "single", "pair", "special_tokens"});
      read_template(step);
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      check_keys(step, type, {"type", "sep", "cls", "trim_offsets", "add_prefix_space"});
      surround({id_of(step.at("cls").at(1))}, {id_of(step.at("sep").at(1))});
    } else if (type != "ByteLevel") {  // which only counts offsets
      fail_unknown("post-processor", type);
    }
  }

 private:
  void read_template(const Json& step) {
    std::vector<int32_t> front;
    std::vector<int32_t> back;
    bool behind_text = false;
    for (const Json& piece : step.at("single")) {
      check_keys(piece, "template", {"SpecialToken", "Sequence"});
      if (piece.contains("SpecialToken")) {
        const auto ids = ids_of(step, piece["SpecialToken"].at("id").get<std::string>());
        auto& side = behind_text ? back : front;
        side.insert(side.end(), ids.begin(), ids.end());
        continue;
      }
      const auto sequence = piece.at("Sequence").at("id").get<std::string>();
      require(sequence == "A" && !behind_text, "tokenizer: the template of a single text takes \"{}\" {}",
              printable(sequence), behind_text ? "behind another, expected one" : "in, expected \"A\"");
      behind_text = true;
    }
    require(behind_text, "tokenizer: the template lacks a part for the text");
    surround(std::move(front), std::move(back));
  }

  // A special token of a template stands for one id or more.
  [[nodiscard]] std::vector<int32_t> ids_of(const Json& step, const std::string& token) const {
    require(step.contains("special_tokens") && step["special_tokens"].contains(token),
            "tokenizer: the template adds \"{}\", which is none of its special_tokens", printable(token));
    std::vector<int32_t> ids;
    for (const Json& id : step["special_tokens"][token].at("ids")) ids.push_back(id_of(id));
    return ids;
  }

  [[nodiscard]] int32_t id_of(const Json& id) const {
    const size_t tokens = source_.vocabulary->tokens().size();
    require(id.is_number_unsigned() && id.get<uint64_t>() < tokens,
            "tokenizer: the post-processor adds the token {}, expected 0 to {}", shown(id), tokens - 1);
    return id.get<int32_t>();
  }

  // What `tokenizers` makes of two that add tokens depends on how the first cuts its result.
  void surround(std::vector<int32_t> front, std::vector<int32_t> back) {
    require(!surrounds_, "tokenizer: two post-processors add tokens, expected one");
    surrounds_ = true;
    source_.front = std::move(front);
    source_.back = std::move(back);
  }

  bool surrounds_ = false;
  TokenizerSource& source_;
};

class DecoderReader {
 public:
  explicit DecoderReader(Decoder& out) : out_(out) {}

  void read(const std::string& type, const Json& step) {
    const auto check_place = [&](bool right) {
      require(right, "tokenizer: the decoder \"{}\" comes behind {}, which is not understood", type,
              fused_ ? "Fuse" : "ByteFallback");
    };
    if (type == "Fuse") {
      check_keys(step, type, {"type"});
      fused_ = true;
    } else if (type == "Strip") {
      check_keys(step, type, {"type", "content", "start", "stop"});
      read_strip(step);
    } else if (type == "ByteFallback") {
      check_keys(step, type, {"type"});
      check_place(!fused_);
      out_.add(decoders::byte_fallback());
      bytes_ = true;
    } else if (type == "Metaspace") {
      check_place(!fused_);
      const Metaspace metaspace = metaspace_of(step);
      if (metaspace.prepend != PreTokenizer::Prepend::never)
        out_.add(decoders::first_only(decoders::replace(metaspace.mark, "")));
      out_.add(decoders::replace(metaspace.mark, " "));
    } else if (type == "Replace") {
      check_keys(step, type, {"type", "pattern", "content"});
      check_place(!fused_ && !bytes_);
      out_.add([replace = normalizers::replace(pattern_of(step.at("pattern")), step.at("content").get<std::string>())](
                   std::string token, bool) { return replace(std::move(token)); });
    } else {
      fail_unknown("decoder", type);
    }
  }

 private:
  void read_strip(const Json& step) {
    const auto count = [&](const char* key) {
      const Json& value = step.at(key);
      require(value.is_number_unsigned(), "tokenizer: Strip's {} is {}, expected a count", key, shown(value));
      return value.get<size_t>();
    };
    const auto content = step.at("content").get<std::string>();
    // The end of a fused text is not known while its tokens come.
    require(!fused_ || count("stop") == 0,
            "tokenizer: the decoder \"Strip\" cuts the end of the text, which is not understood");
    const auto strip = decoders::strip(content, count("start"), count("stop"));
    out_.add(fused_ ? decoders::first_only(strip) : strip);
  }

  Decoder& out_;
  bool fused_ = false;
  bool bytes_ = false;
};

}  // namespace

void check_keys(const Json& object, std::string_view what, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.get_ref<const Json::object_t&>())
    require(std::ranges::find(known, std::string_view(key)) != known.end(),
            "tokenizer: {} has the key \"{}\", which is not known", what, printable(key));
}

void read_normalizer(const Json& json, Normalizer& normalizer) {
  namespace n = normalizers;
  for_each_step(json, "normalizer", "normalizers", [&](const std::string& type, const Json& step) {
    static const std::unordered_map<std::string, n::Form> kForms = {
        {"NFC", n::Form::nfc}, {"NFD", n::Form::nfd}, {"NFKC", n::Form::nfkc}, {"NFKD", n::Form::nfkd}};
    if (const auto form = kForms.find(type); form != kForms.end()) {
      check_keys(step, type, {"type"});
      normalizer.add(n::unicode_form(form->second));
    } else if (type == "Lowercase" || type == "StripAccents") {
      check_keys(step, type, {"type"});
      normalizer.add(type == "Lowercase" ? n::lowercase() : n::strip_accents());
    } else if (type == "Strip") {
      check_keys(step, type, {"type", "strip_left", "strip_right"});
      normalizer.add(n::strip(step.value("strip_left", true), step.value("strip_right", true)));
    } else if (type == "Prepend") {
      check_keys(step, type, {"type", "prepend"});
      normalizer.add(n::prepend(step.at("prepend").get<std::string>()));
    } else if (type == "Replace") {
      check_keys(step, type, {"type", "pattern", "content"});
      normalizer.add(n::replace(pattern_of(step.at("pattern")), step.at("content").get<std::string>()));
    } else if (type == "Precompiled") {
      check_keys(step, type, {"type", "precompiled_charsmap"});
      normalizer.add(n::charsmap(bytes_of_base64(step.at("precompiled_charsmap").get<std::string>())));
    } else {
      fail_unknown("normalizer", type);
    }
  });
}

bool read_pre_tokenizer(const Json& json, PreTokenizer& pre_tokenizer) {
  PreTokenizerReader reader(pre_tokenizer);
  for_each_step(json, "pre-tokenizer", "pretokenizers",
                [&](const std::string& type, const Json& step) { reader.read(type, step); });
  return reader.byte_level();
}

void read_post_processor(const Json& json, TokenizerSource& source) {
  PostProcessorReader reader(source);
  for_each_step(json, "post-processor", "processors",
                [&](const std::string& type, const Json& step) { reader.read(type, step); });
}

void read_decoder(const Json& json, bool byte_level, Decoder& decoder) {
  DecoderReader reader(decoder);
  for_each_step(json, "decoder", "decoders", [&](const std::string& type, const Json& step) {
    if (!byte_level) return reader.read(type, step);
    // The tokens are bytes already, whose order Fuse leaves alone.
    require(type == "ByteLevel" || type == "Fuse",
            "tokenizer: the decoder is \"{}\" where the pre-tokenizer is ByteLevel, expected ByteLevel",
            printable(type));
  });
}

}  // namespace regard
