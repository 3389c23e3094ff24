#pragma once

#include <span>
#include <vector>

#include "parallel/even_parts.h"
#include "parallel/span_share.h"
#include "parallel/token_share.h"
#include "regard/cache.h"
#include "regard/parallel.h"

namespace regard {

// The spans as a rank sees them that has a share of each sequence's tokens.
[[nodiscard]] std::vector<Span> own_parts(const TokenShare& share, std::span<const Span> spans);

// Which rows of ranks compute which tokens of a call, in one stage.
class StageTokens {
 public:
  // Prefill: every row gets a part of each span. `chosen`: the spans of this stage.
  [[nodiscard]] static StageTokens of_prefill(std::span<const Span> spans, std::span<const size_t> chosen, int64_t rows,
                                              ContextSplit split);
  // Decode: every row has sequences of its own, so many slots a row.
  [[nodiscard]] static StageTokens of_decode(std::span<const Span> spans, std::span<const size_t> chosen, int64_t rows,
                                             int64_t slots_a_row);

  [[nodiscard]] int64_t rows() const { return static_cast<int64_t>(shares_.size()); }
  [[nodiscard]] const std::vector<SpanShare>& of_row(int64_t row) const { return shares_[static_cast<size_t>(row)]; }
  [[nodiscard]] int64_t count_of(int64_t row) const { return static_cast<int64_t>(tokens_of(row).size()); }
  // Places of a row's tokens among the call's packed tokens, in the order in which the row computes them.
  [[nodiscard]] const std::vector<int64_t>& tokens_of(int64_t row) const { return tokens_[static_cast<size_t>(row)]; }

 private:
  StageTokens(std::span<const Span> spans, std::vector<std::vector<SpanShare>> shares);

  std::vector<std::vector<SpanShare>> shares_;
  std::vector<std::vector<int64_t>> tokens_;
};

}  // namespace regard
