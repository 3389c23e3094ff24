#include "engine/prompt_lookup.h"

#include <algorithm>

namespace regard {

// The last tokens as a number. Vocabularies have fewer than 2^21 tokens; if one had more, n-grams could be mistaken for
// each other, which costs a wrong draft and nothing else.
uint64_t PromptLookup::last_gram(size_t length) const {
  constexpr int kBits = 21;
  uint64_t gram = 0;
  for (size_t i = text_.size() - length; i < text_.size(); ++i) gram = gram << kBits | static_cast<uint32_t>(text_[i]);
  return gram;
}

// An n-gram is known once a token has followed it, so that the last one is never found at its own place.
void PromptLookup::extend(std::span<const int32_t> tokens) {
  if (length_.longest() == 0) return;
  for (const int32_t token : tokens) {
    if (text_.size() >= 2) after_two_.insert_or_assign(last_gram(2), text_.size());
    if (text_.size() >= 3) after_three_.insert_or_assign(last_gram(3), text_.size());
    text_.push_back(token);
  }
}

// A token more in a call costs a quarter of a step (SmolLM2). After two or three equal tokens enough of them come true
// for that; after one, which would find twice as many drafts, a tenth does.
std::vector<int32_t> PromptLookup::draft(int64_t room) {
  const auto count = static_cast<size_t>(std::min(length_.wanted(), room));
  for (const size_t length : {3U, 2U}) {
    if (text_.size() < length) continue;
    const Places& places = length == 3 ? after_three_ : after_two_;
    const auto found = places.find(last_gram(length));
    if (found == places.end()) continue;
    const std::span<const int32_t> rest = std::span(text_).subspan(found->second);
    const auto taken = rest.first(std::min(count, rest.size()));
    return {taken.begin(), taken.end()};
  }
  return {};
}

}  // namespace regard
