#include "text/unigram_encoder.h"

#include <algorithm>
#include <limits>

#include "text/utf8.h"

namespace regard {

UnigramEncoder::UnigramEncoder(std::shared_ptr<const Vocabulary> vocabulary,
                               const std::vector<std::optional<double>>& scores, UnknownText unknown)
    : vocabulary_(std::move(vocabulary)), unknown_(unknown) {
  constexpr double kUnknownPenalty = 10;
  double lowest = std::numeric_limits<double>::max();
  std::vector<PrefixIndex::Entry> entries;
  for (size_t id = 0; id < scores.size(); ++id) {
    scores_.push_back(scores[id].value_or(0));
    const std::string& text = vocabulary_->tokens()[id];
    if (!scores[id] || text.empty()) continue;
    lowest = std::min(lowest, *scores[id]);
    entries.emplace_back(text, static_cast<int32_t>(id));
  }
  unknown_score_ = lowest - kUnknownPenalty;
  index_ = PrefixIndex(std::move(entries));
}

std::vector<UnigramEncoder::Arrival> UnigramEncoder::best_arrivals(std::string_view word) const {
  std::vector<Arrival> best(word.size() + 1);
  for (size_t at = 0, next = 0; at < word.size(); at = next) {
    (void)next_code_point(word, next);
    const double so_far = best[at].score;
    const auto arrive = [&](size_t end, double score, int32_t token) {
      if (best[end].from == kNone || score > best[end].score) best[end] = {.score = score, .token = token, .from = at};
    };
    bool is_token = false;
    index_.find(word.substr(at), [&](size_t length, int32_t token) {
      arrive(at + length, so_far + scores_[static_cast<size_t>(token)], token);
      if (at + length == next) is_token = true;
    });
    if (!is_token) arrive(next, so_far + unknown_score_, -1);
  }
  return best;
}

void UnigramEncoder::append_unknown(std::string_view text, std::vector<int32_t>& out) const {
  if (!unknown_.bytes || !vocabulary_->append_bytes(text, out)) out.push_back(unknown_.token.value());
}

void UnigramEncoder::encode(std::string_view word, std::vector<int32_t>& out) const {
  const std::vector<Arrival> best = best_arrivals(word);
  std::vector<size_t> ends;
  for (size_t end = word.size(); end > 0; end = best[end].from) ends.push_back(end);
  std::ranges::reverse(ends);
  size_t unknown_from = 0;
  size_t at = 0;
  for (const size_t end : ends) {
    if (best[end].token >= 0) {
      if (unknown_from < at) append_unknown(word.substr(unknown_from, at - unknown_from), out);
      out.push_back(best[end].token);
      unknown_from = end;
    }
    at = end;
  }
  if (unknown_from < at) append_unknown(word.substr(unknown_from, at - unknown_from), out);
}

}  // namespace regard
