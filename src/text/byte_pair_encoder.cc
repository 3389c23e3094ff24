#include "text/byte_pair_encoder.h"

#include <algorithm>
#include <queue>

#include "tensor/fail.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace regard {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Two neighbouring parts that could become one. It is stale when one of them has changed since; parts only grow, so
// that their sizes tell.
struct Candidate {
  int32_t rank;
  int32_t left;  // index of the part
  int32_t token;
  size_t size;

  // The lowest rank first, and among equals the leftmost.
  bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
};

}  // namespace

// A part of a word that is a token so far, or a character that is none; parts form a list.
struct BytePairEncoder::Part {
  TextRange range;
  int32_t token;  // -1 for text that is no token
  int32_t previous;
  int32_t next;
};

MergeRules MergeRules::of_pairs(const Vocabulary& vocabulary,
                                const std::vector<std::pair<std::string, std::string>>& pairs) {
  MergeRules rules;
  rules.pairs_.reserve(pairs.size());
  for (size_t rank = 0; rank < pairs.size(); ++rank) {
    const auto& [left, right] = pairs[rank];
    const int32_t left_id = vocabulary.find(left);
    const int32_t right_id = vocabulary.find(right);
    const int32_t merged = vocabulary.find(left + right);
    require(left_id >= 0 && right_id >= 0 && merged >= 0,
            "tokenizer: merge {} joins tokens that are not in the vocabulary", rank);
    rules.pairs_.emplace(pair_key(left_id, right_id), Merge{.rank = static_cast<int32_t>(rank), .token = merged});
  }
  return rules;
}

MergeRules MergeRules::of_scores(const Vocabulary& vocabulary, const std::vector<std::optional<double>>& scores) {
  std::vector<double> order;
  for (const auto& score : scores)
    if (score) order.push_back(*score);
  std::ranges::sort(order, std::greater());
  MergeRules rules;
  rules.vocabulary_ = &vocabulary;
  for (const auto& score : scores) {
    const auto place = score ? std::ranges::lower_bound(order, *score, std::greater()) - order.begin() : -1;
    rules.ranks_.push_back(static_cast<int32_t>(place));
  }
  return rules;
}

std::optional<MergeRules::Merge> MergeRules::find(int32_t left, int32_t right, std::string_view joined) const {
  if (vocabulary_ != nullptr) {
    const int32_t token = vocabulary_->find(joined);
    if (token < 0 || ranks_[static_cast<size_t>(token)] < 0) return std::nullopt;
    return Merge{.rank = ranks_[static_cast<size_t>(token)], .token = token};
  }
  const auto found = pairs_.find(pair_key(left, right));
  return found == pairs_.end() ? std::nullopt : std::optional(found->second);
}

std::vector<BytePairEncoder::Part> BytePairEncoder::symbols_of(std::string_view word) const {
  const UnknownText& unknown = options_.unknown;
  std::vector<Part> parts;
  parts.reserve(word.size());
  for (size_t at = 0, next = 0; at < word.size(); at = next) {
    if (options_.symbols == Options::Symbols::bytes)
      next = at + 1;
    else
      (void)next_code_point(word, next);
    const int32_t token = vocabulary_->find(word.substr(at, next - at));
    // What nothing stands for is dropped, as the original tokenizers do, and its neighbours meet.
    if (token < 0 && !unknown.bytes && !unknown.token) continue;
    const auto index = static_cast<int32_t>(parts.size());
    parts.push_back({.range = {at, next}, .token = token, .previous = index - 1, .next = index + 1});
  }
  if (!parts.empty()) parts.back().next = -1;
  return parts;
}

void BytePairEncoder::merge(std::string_view word, std::vector<Part>& parts) const {
  const auto part = [&](int32_t index) -> Part& { return parts[static_cast<size_t>(index)]; };
  std::priority_queue<Candidate> candidates;
  const auto consider = [&](int32_t index) {
    if (index < 0 || part(index).next < 0) return;
    const Part& left = part(index);
    const Part& right = part(left.next);
    const std::string_view joined = word.substr(left.range.begin, right.range.end - left.range.begin);
    if (const auto merge = rules_.find(left.token, right.token, joined))
      candidates.push({.rank = merge->rank, .left = index, .token = merge->token, .size = joined.size()});
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(parts.size()); ++i) consider(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Part& left = part(best.left);
    // A part that was merged into the one before it has no size.
    if (left.range.size() == 0 || left.next < 0) continue;
    Part& right = part(left.next);
    if (right.range.end - left.range.begin != best.size) continue;
    left.token = best.token;
    left.range.end = right.range.end;
    right.range.end = right.range.begin;
    left.next = right.next;
    if (right.next >= 0) part(right.next).previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
}

void BytePairEncoder::encode(std::string_view word, std::vector<int32_t>& out) const {
  if (options_.whole_words) {
    if (const int32_t id = vocabulary_->find(word); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  std::vector<Part> parts = symbols_of(word);
  if (parts.empty()) return;
  merge(word, parts);
  const UnknownText& unknown = options_.unknown;
  bool behind_unknown = false;
  for (int32_t i = 0; i >= 0; i = parts[static_cast<size_t>(i)].next) {
    const Part& part = parts[static_cast<size_t>(i)];
    const bool known = part.token >= 0;
    if (known) out.push_back(part.token);
    if (known || (unknown.bytes && vocabulary_->append_bytes(part.range.of(word), out))) {
      behind_unknown = false;
      continue;
    }
    if (unknown.token && !(behind_unknown && unknown.fuse)) out.push_back(*unknown.token);
    behind_unknown = true;
  }
}

}  // namespace regard
