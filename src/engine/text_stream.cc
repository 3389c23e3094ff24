#include "engine/text_stream.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "tensor/fail.h"
#include "text/utf8.h"

namespace regard {
namespace {

// The longest end of `text` that is the beginning of `stop`, but not all of it.
size_t begun_stop(std::string_view text, std::string_view stop) {
  size_t length = std::min(text.size(), stop.size() - 1);
  while (length > 0 && !text.ends_with(stop.substr(0, length))) --length;
  return length;
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop_texts)
    : tokenizer_(tokenizer), stop_texts_(std::move(stop_texts)) {
  for (const std::string& stop : stop_texts_) require(!stop.empty(), "a stop text is empty, expected a text");
}

std::string TextStream::push(int32_t token) {
  if (stopped_ || tokenizer_.is_special(token)) return {};
  using Place = Tokenizer::Place;
  pending_ += tokenizer_.decode({&token, 1}, begun_ ? Place::behind_others : Place::beginning);
  begun_ = true;
  size_t ready = find_stop();
  stopped_ = ready != std::string::npos;
  if (!stopped_) ready = pending_.size() - held_back();
  std::string text = pending_.substr(0, ready);
  pending_.erase(0, stopped_ ? std::string::npos : ready);
  return text;
}

std::string TextStream::finish() { return std::exchange(pending_, {}); }

// Where the first stop text begins, or npos. What might begin one is always pending.
size_t TextStream::find_stop() const {
  size_t first = std::string::npos;
  for (const std::string& stop : stop_texts_) first = std::min(first, pending_.find(stop));
  return first;
}

size_t TextStream::held_back() const {
  size_t length = incomplete_tail(pending_);
  for (const std::string& stop : stop_texts_) length = std::max(length, begun_stop(pending_, stop));
  return length;
}

}  // namespace regard
