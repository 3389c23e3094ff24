#include "text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <optional>

#include "tensor/fail.h"

namespace regard {
namespace {

using Piece = std::pair<std::string_view, bool>;  // text, whether it is a match

// Unicode's White_Space. PCRE2's own \s also takes U+180E, which tokenizers do not.
constexpr std::string_view kWhiteSpace =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";

// Replaces \s and \S, inside and outside of brackets.
std::string with_unicode_space(const std::string& pattern) {
  std::string result;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\' || i + 1 == pattern.size()) {
      if (c == '[') in_class = true;
      if (c == ']') in_class = false;
      result += c;
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's')
      result += in_class ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
    else if (escaped == 'S' && !in_class)
      result += fmt::format("[^{}]", kWhiteSpace);
    else
      result += {c, escaped};
  }
  return result;
}

}  // namespace

struct PreTokenizer::Step {
  std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code{nullptr, &pcre2_code_free};
  Behavior behavior = Behavior::isolated;
  bool invert = false;

  // Matches and the gaps between them. A match may be empty and then only parts its neighbours, as (?=[A-Z]) does; one
  // where another match ends does not count.
  [[nodiscard]] std::vector<Piece> find(std::string_view text) const {
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
        pcre2_match_data_create_from_pattern(code.get(), nullptr), &pcre2_match_data_free);
    std::vector<Piece> pieces;
    size_t at = 0;
    std::optional<size_t> last_end;
    for (size_t from = 0; from <= text.size();) {
      const int found = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                    PCRE2_NO_UTF_CHECK, match.get(), nullptr);
      if (found == PCRE2_ERROR_NOMATCH) break;
      require(found > 0, "tokenizer: splitting the text failed with PCRE2's error {}", found);
      const size_t begin = pcre2_get_ovector_pointer(match.get())[0];
      const size_t end = pcre2_get_ovector_pointer(match.get())[1];
      if (begin == end && last_end == end) {
        // The next one is looked for behind the next character.
        from = end + 1;
        while (from < text.size() && (static_cast<uint8_t>(text[from]) & 0xC0) == 0x80) ++from;
        continue;
      }
      if (begin > at) pieces.emplace_back(text.substr(at, begin - at), invert);
      pieces.emplace_back(text.substr(begin, end - begin), !invert);
      at = from = end;
      last_end = end;
    }
    if (at < text.size()) pieces.emplace_back(text.substr(at), invert);
    return pieces;
  }

  void split(std::string_view text, std::vector<std::string_view>& out) const {
    const auto extend = [](std::string_view& piece, std::string_view more) {
      piece = {piece.data(), piece.size() + more.size()};
    };
    const size_t begin = out.size();
    bool previous_match = false;
    for (const auto& [piece, is_match] : find(text)) {
      const bool first = out.size() == begin;
      bool joins = false;
      switch (behavior) {
        case Behavior::removed:
          if (is_match) continue;
          break;
        case Behavior::isolated:
          break;
        case Behavior::merged_with_previous:
          joins = is_match && !first && !previous_match;
          break;
        case Behavior::merged_with_next:
          joins = !is_match && !first && previous_match;
          break;
        case Behavior::contiguous:
          joins = !first && is_match == previous_match;
          break;
      }
      if (joins)
        extend(out.back(), piece);
      else
        out.push_back(piece);
      previous_match = is_match;
    }
    // What an empty match left.
    const auto is_empty = [](std::string_view piece) { return piece.empty(); };
    out.erase(std::remove_if(out.begin() + static_cast<std::ptrdiff_t>(begin), out.end(), is_empty), out.end());
  }
};

const char* const kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

void PreTokenizer::add_split(const std::string& pattern, Behavior behavior, bool invert) {
  const std::string portable = with_unicode_space(pattern);
  // \C would match a byte of a character, and the next split would start inside of it.
  int error = 0;
  size_t offset = 0;
  auto step = std::make_unique<Step>();
  // ^ and $ mean lines, as in the Ruby syntax that tokenizers' patterns are written in.
  step->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(portable.data()), portable.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                 nullptr));
  require(step->code != nullptr, "tokenizer: the pattern \"{}\" is not understood", printable(pattern));
  // Where there is no just-in-time compiler, matching is interpreted.
  (void)pcre2_jit_compile(step->code.get(), PCRE2_JIT_COMPLETE);
  step->behavior = behavior;
  step->invert = invert;
  steps_.push_back(std::move(step));
}

std::vector<std::string_view> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const auto& step : steps_) {
    std::vector<std::string_view> next;
    for (const std::string_view piece : pieces) step->split(piece, next);
    pieces = std::move(next);
  }
  return pieces;
}

PreTokenizer gguf_pre_tokenizer(const std::string& name) {
  struct Known {
    std::string_view name;
    std::vector<const char*> patterns;
  };
  static const std::array<Known, 6> kKnown = {
      {{"default", {kGpt2Pattern}},
       {"gpt-2", {kGpt2Pattern}},
       {"smollm", {R"(\p{N})", kGpt2Pattern}},
       {"llama-bpe",
        {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
       {"llama3",
        {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}},
       {"qwen2",
        {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}}}};
  for (const Known& known : kKnown) {
    if (known.name != name) continue;
    PreTokenizer splitter;
    for (const char* pattern : known.patterns) splitter.add_split(pattern, PreTokenizer::Behavior::isolated);
    return splitter;
  }
  fail("tokenizer: tokenizer.ggml.pre is \"{}\", which this version does not know", printable(name));
}

}  // namespace regard
