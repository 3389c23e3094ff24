#pragma once

#include <memory>
#include <utility>

#include "text/vocabulary.h"

namespace regard {

// Which two neighbouring tokens become one, and which first.
class MergeRules {
 public:
  // In order of rank, each two tokens that become one. Throws Error for merges of unknown tokens.
  [[nodiscard]] static MergeRules of_pairs(const Vocabulary& vocabulary,
                                           const std::vector<std::pair<std::string, std::string>>& pairs);
  // SentencePiece's rule: neighbours merge whenever their text together is a token, the highest score first. `scores`
  // by id; tokens without a score never come of a merge. `vocabulary` must live as long as the rules.
  [[nodiscard]] static MergeRules of_scores(const Vocabulary& vocabulary,
                                            const std::vector<std::optional<double>>& scores);

  struct Merge {
    int32_t rank;  // the lowest first
    int32_t token;
  };
  // `joined` is the text of both; a token is -1 where the text is none.
  [[nodiscard]] std::optional<Merge> find(int32_t left, int32_t right, std::string_view joined) const;

 private:
  std::unordered_map<uint64_t, Merge> pairs_;
  const Vocabulary* vocabulary_ = nullptr;  // of rules by score
  std::vector<int32_t> ranks_;              // by id, -1 for none
};

// Byte-pair encoding of single words.
class BytePairEncoder : public Encoder {
 public:
  struct Options {
    // What merging starts from.
    enum class Symbols : uint8_t { bytes, characters } symbols = Symbols::bytes;
    // A word that is a token is never merged from parts (ignore_merges).
    bool whole_words = false;
    UnknownText unknown = {};
  };

  BytePairEncoder(std::shared_ptr<const Vocabulary> vocabulary, MergeRules rules, Options options)
      : vocabulary_(std::move(vocabulary)), rules_(std::move(rules)), options_(options) {}

  // Takes n log n steps for n characters.
  void encode(std::string_view word, std::vector<int32_t>& out) const override;

 private:
  struct Part;
  [[nodiscard]] std::vector<Part> symbols_of(std::string_view word) const;
  void merge(std::string_view word, std::vector<Part>& parts) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  MergeRules rules_;
  Options options_;
};

}  // namespace regard
