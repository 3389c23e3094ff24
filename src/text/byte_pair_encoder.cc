#include "text/byte_pair_encoder.h"

#include <queue>

#include "tensor/fail.h"

namespace regard {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// A part of a word that is a token so far; parts form a list.
struct Part {
  int32_t token;
  int32_t previous;
  int32_t next;
};

// Two neighbouring parts that could become one. It is stale when one of them has changed since.
struct Candidate {
  int32_t rank;
  int32_t left;  // index of the part
  int32_t left_token;
  int32_t right_token;

  // The lowest rank first, and among equals the leftmost.
  bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
};

}  // namespace

BytePairEncoder::BytePairEncoder(std::vector<std::string> tokens,
                                 const std::vector<std::pair<std::string, std::string>>& merges, bool whole_words)
    : tokens_(std::move(tokens)), whole_words_(whole_words) {
  ids_.reserve(tokens_.size());
  for (size_t id = 0; id < tokens_.size(); ++id) ids_.emplace(tokens_[id], static_cast<int32_t>(id));
  for (size_t byte = 0; byte < bytes_.size(); ++byte) bytes_[byte] = find(std::string(1, static_cast<char>(byte)));
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const int32_t left_id = find(left);
    const int32_t right_id = find(right);
    const int32_t merged = find(left + right);
    require(left_id >= 0 && right_id >= 0 && merged >= 0,
            "tokenizer: merge {} joins tokens that are not in the vocabulary", rank);
    merges_.emplace(pair_key(left_id, right_id), Merge{.rank = static_cast<int32_t>(rank), .token = merged});
  }
}

int32_t BytePairEncoder::find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? -1 : found->second;
}

const BytePairEncoder::Merge* BytePairEncoder::find_merge(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BytePairEncoder::encode(std::string_view word, std::vector<int32_t>& out) const {
  if (whole_words_) {
    if (const int32_t id = find(word); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  std::vector<Part> parts;
  parts.reserve(word.size());
  for (const char c : word) {
    // Bytes that the vocabulary lacks are dropped, as the original tokenizers do.
    const int32_t token = bytes_[static_cast<uint8_t>(c)];
    if (token < 0) continue;
    const auto index = static_cast<int32_t>(parts.size());
    parts.push_back({.token = token, .previous = index - 1, .next = index + 1});
  }
  if (parts.empty()) return;
  parts.back().next = -1;

  std::priority_queue<Candidate> candidates;
  const auto consider = [&](int32_t left) {
    if (left < 0 || parts[static_cast<size_t>(left)].next < 0) return;
    const int32_t left_token = parts[static_cast<size_t>(left)].token;
    const int32_t right_token = parts[static_cast<size_t>(parts[static_cast<size_t>(left)].next)].token;
    if (const Merge* merge = find_merge(left_token, right_token))
      candidates.push({.rank = merge->rank, .left = left, .left_token = left_token, .right_token = right_token});
  };
  for (size_t i = 0; i + 1 < parts.size(); ++i) consider(static_cast<int32_t>(i));
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Part& left = parts[static_cast<size_t>(best.left)];
    if (left.token != best.left_token || left.next < 0) continue;
    Part& right = parts[static_cast<size_t>(left.next)];
    if (right.token != best.right_token) continue;
    left.token = find_merge(best.left_token, best.right_token)->token;
    right.token = -1;
    left.next = right.next;
    if (right.next >= 0) parts[static_cast<size_t>(right.next)].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (int32_t i = 0; i >= 0; i = parts[static_cast<size_t>(i)].next)
    out.push_back(parts[static_cast<size_t>(i)].token);
}

}  // namespace regard
