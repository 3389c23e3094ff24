#include "text/added_tokens.h"

#include "text/utf8.h"

namespace regard {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizer& normalizer) {
  for (AddedToken& token : tokens) {
    if (token.special) special_.insert(token.id);
    if (token.normalized) token.text = normalizer.normalize(token.text);
    if (token.text.empty()) continue;
    Set& set = token.normalized ? normalized_ : as_written_;
    set.add(std::move(token));
  }
  as_written_.finish();
  normalized_.finish();
}

void AddedTokens::Set::add(AddedToken token) { tokens_.push_back(std::move(token)); }

void AddedTokens::Set::finish() {
  std::vector<PrefixIndex::Entry> entries;
  for (size_t i = 0; i < tokens_.size(); ++i) entries.emplace_back(tokens_[i].text, static_cast<int32_t>(i));
  index_ = PrefixIndex(std::move(entries));
}

const AddedToken* AddedTokens::Set::longest_at(std::string_view text) const {
  const AddedToken* longest = nullptr;
  index_.find(text, [&](size_t, int32_t number) { longest = &tokens_[static_cast<size_t>(number)]; });
  return longest;
}

// Whether no word goes on before or behind this part of the text.
bool AddedTokens::Set::stands_alone(std::string_view text, TextRange range) const {
  const auto is_word = [&](std::string_view character) {
    const auto pieces = word_character_.find(character);
    return !pieces.empty() && pieces.front().is_match;
  };
  const std::string_view before = text.substr(0, range.begin);
  if (!before.empty() && is_word(before.substr(last_character(before)))) return false;
  size_t next = range.end;
  if (next < text.size()) (void)next_code_point(text, next);
  return !is_word(text.substr(range.end, next - range.end));
}

std::vector<AddedTokens::Segment> AddedTokens::Set::find(std::string_view text) const {
  std::vector<Segment> segments;
  size_t plain = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = longest_at(text.substr(at));
    const TextRange match = {at, at + (token == nullptr ? 1 : token->text.size())};
    at = match.end;
    if (token == nullptr || (token->single_word && !stands_alone(text, match))) continue;
    TextRange taken = match;
    if (token->strip_left) taken.begin -= trailing_space(text.substr(plain, match.begin - plain));
    if (token->strip_right) taken.end += leading_space(text.substr(match.end));
    if (plain < taken.begin) segments.push_back({{plain, taken.begin}, std::nullopt});
    segments.push_back({taken, token->id});
    plain = at = taken.end;
  }
  if (plain < text.size()) segments.push_back({{plain, text.size()}, std::nullopt});
  return segments;
}

}  // namespace regard
