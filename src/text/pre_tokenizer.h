#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace regard {

// Cuts text into the words that byte-pair encoding works on: a list of splits, each applied to the pieces of the one
// before.
class PreTokenizer {
 public:
  // What becomes of a match of the pattern.
  enum class Behavior : uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };

  PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Throws Error for a pattern that PCRE2 does not compile. `invert` swaps matches and what lies between them.
  void add_split(const std::string& pattern, Behavior behavior, bool invert = false);

  // Pieces of `text`, which must be valid UTF-8, in order. Throws Error if matching runs out of its limits.
  [[nodiscard]] std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Step;
  std::vector<std::unique_ptr<Step>> steps_;
};

// The pattern that GPT-2's byte-level tokenizers split by.
extern const char* const kGpt2Pattern;

// The splits of a GGUF file's `tokenizer.ggml.pre`. Throws Error for a name that is not known.
[[nodiscard]] PreTokenizer gguf_pre_tokenizer(const std::string& name);

}  // namespace regard
