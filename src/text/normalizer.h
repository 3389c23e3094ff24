#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "text/pattern.h"

namespace regard {

// What happens to a text before it is split: a list of steps, each a function from valid UTF-8 to valid UTF-8.
class Normalizer {
 public:
  using Step = std::function<std::string(std::string)>;

  void add(Step step) { steps_.push_back(std::move(step)); }
  [[nodiscard]] std::string normalize(std::string_view text) const;

 private:
  std::vector<Step> steps_;
};

// The steps, as `tokenizers` defines them.
namespace normalizers {

enum class Form : uint8_t { nfc, nfd, nfkc, nfkd };
[[nodiscard]] Normalizer::Step unicode_form(Form form);
[[nodiscard]] Normalizer::Step replace(Pattern pattern, std::string content);
// Puts `prefix` before a text that is not empty.
[[nodiscard]] Normalizer::Step prepend(std::string prefix);
// Each character by itself: without the rules of languages and of final sigmas.
[[nodiscard]] Normalizer::Step lowercase();
// White space at the ends.
[[nodiscard]] Normalizer::Step strip(bool left, bool right);
// Removes all marks (general category M).
[[nodiscard]] Normalizer::Step strip_accents();

}  // namespace normalizers

}  // namespace regard
