#include "text/pre_tokenizer.h"

#include <algorithm>

namespace regard {
namespace {

using Behavior = PreTokenizer::Behavior;

// Whether a piece becomes a part of the one before it.
bool joins_previous(Behavior behavior, bool is_match, bool previous_match) {
  switch (behavior) {
    case Behavior::removed:
    case Behavior::isolated:
      return false;
    case Behavior::merged_with_previous:
      return is_match && !previous_match;
    case Behavior::merged_with_next:
      return !is_match && previous_match;
    case Behavior::contiguous:
      return is_match == previous_match;
  }
  return false;
}

void split_range(const Pattern& pattern, Behavior behavior, bool invert, std::string_view text, TextRange whole,
                 std::vector<TextRange>& out) {
  const size_t begin = out.size();
  bool previous_match = false;
  for (const auto& [piece, matched] : pattern.find(whole.of(text))) {
    const bool is_match = matched != invert;
    if (behavior == Behavior::removed && is_match) continue;
    const TextRange range = {whole.begin + piece.begin, whole.begin + piece.end};
    if (out.size() > begin && joins_previous(behavior, is_match, previous_match))
      out.back().end = range.end;
    else
      out.push_back(range);
    previous_match = is_match;
  }
  // What an empty match left.
  const auto is_empty = [](TextRange range) { return range.size() == 0; };
  out.erase(std::remove_if(out.begin() + static_cast<std::ptrdiff_t>(begin), out.end(), is_empty), out.end());
}

}  // namespace

const char* const kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

template <class Rewrite>
void PreTokenizer::rewrite(Pieces& pieces, Rewrite change) {
  std::string text;
  for (size_t i = 0; i < pieces.ranges.size(); ++i) {
    const size_t begin = text.size();
    change(i, pieces.ranges[i], text);
    pieces.ranges[i] = {begin, text.size()};
  }
  pieces.text = std::move(text);
}

void PreTokenizer::add_split(const std::string& regex, Behavior behavior, bool invert) {
  add_split(Pattern(regex), behavior, invert);
}

void PreTokenizer::add_split(Pattern pattern, Behavior behavior, bool invert) {
  steps_.emplace_back([pattern = std::move(pattern), behavior, invert](Pieces& pieces) {
    std::vector<TextRange> ranges;
    for (const TextRange range : pieces.ranges) split_range(pattern, behavior, invert, pieces.text, range, ranges);
    pieces.ranges = std::move(ranges);
  });
}

void PreTokenizer::add_metaspace(const std::string& mark, Prepend prepend, bool split) {
  steps_.emplace_back([mark, prepend, space = Pattern(" ")](Pieces& pieces) {
    const bool whole_begins = pieces.begins && !pieces.ranges.empty() && pieces.ranges.front().begin == 0;
    rewrite(pieces, [&](size_t number, TextRange range, std::string& out) {
      const std::string piece = space.replace(range.of(pieces.text), mark);
      const bool wanted = prepend == Prepend::always || (prepend == Prepend::first && number == 0 && whole_begins);
      if (wanted && !piece.starts_with(mark)) out += mark;
      out += piece;
    });
  });
  if (split) add_split(Pattern::of_text(mark), Behavior::merged_with_next);
}

void PreTokenizer::add_prefix_space() {
  steps_.emplace_back([](Pieces& pieces) {
    rewrite(pieces, [&](size_t, TextRange range, std::string& out) {
      const std::string_view piece = range.of(pieces.text);
      if (!piece.starts_with(' ')) out += ' ';
      out += piece;
    });
  });
}

std::vector<std::string_view> PreTokenizer::split(std::string& text, bool begins) const {
  Pieces pieces{.text = text, .begins = begins};
  if (!text.empty()) pieces.ranges.push_back({0, text.size()});
  for (const auto& step : steps_) step(pieces);
  std::vector<std::string_view> words;
  words.reserve(pieces.ranges.size());
  for (const TextRange range : pieces.ranges) words.push_back(range.of(text));
  return words;
}

}  // namespace regard
