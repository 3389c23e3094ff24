#include "cli/stop_texts.h"

#include <algorithm>
#include <utility>

namespace regard::cli {

StopTexts::StopTexts(std::vector<std::string> texts, const Tokenizer& tokenizer)
    : texts_(std::move(texts)), tokenizer_(&tokenizer) {
  for (const std::string& text : texts_) longest_ = std::max(longest_, text.size());
}

bool StopTexts::end_with(int32_t token) {
  if (texts_.empty() || tokenizer_->is_special(token)) return false;
  using Place = Tokenizer::Place;
  tail_ += tokenizer_->decode({&token, 1}, begun_ ? Place::behind_others : Place::beginning);
  begun_ = true;
  if (before_stop(tail_, texts_).size() < tail_.size()) return true;
  if (tail_.size() >= longest_) tail_.erase(0, tail_.size() - (longest_ - 1));
  return false;
}

std::string_view before_stop(std::string_view text, std::span<const std::string> texts) {
  size_t end = text.size();
  for (const std::string& stop : texts) end = std::min(end, text.find(stop));
  return text.substr(0, end);
}

}  // namespace regard::cli
