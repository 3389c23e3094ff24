#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "text/prefix_index.h"
#include "text/vocabulary.h"

namespace regard {

// The unigram model of SentencePiece: of all ways to cut a word into tokens, the one with the highest sum of scores,
// found by Viterbi's algorithm. A character that is no token scores 10 below the lowest token.
class UnigramEncoder : public Encoder {
 public:
  // `scores` by id, finite; tokens without a score are never found in a word. Unknown characters that follow each other
  // are one unknown text; `unknown.token` must be there.
  UnigramEncoder(std::shared_ptr<const Vocabulary> vocabulary, const std::vector<std::optional<double>>& scores,
                 UnknownText unknown);

  // Takes time in proportion to the word times the longest token.
  void encode(std::string_view word, std::vector<int32_t>& out) const override;

 private:
  // The best way to a place in the word: its last token, or -1 for an unknown character, and where that begins.
  struct Arrival {
    double score = 0;
    int32_t token = -1;
    size_t from = kNone;
  };
  static constexpr size_t kNone = static_cast<size_t>(-1);
  [[nodiscard]] std::vector<Arrival> best_arrivals(std::string_view word) const;
  void append_unknown(std::string_view text, std::vector<int32_t>& out) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<double> scores_;  // by id
  PrefixIndex index_;
  double unknown_score_ = 0;
  UnknownText unknown_;
};

}  // namespace regard
