// Which rows of ranks compute which tokens, and how much work that is.
#include "layers/stage_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "regard/mask.h"

namespace regard {
namespace {

// By row: pairs of one of its tokens and a key that it sees.
std::vector<double> work_of_rows(const Span& span, int64_t rows, ContextSplit split) {
  const std::vector<Span> spans = {span};
  const std::vector<size_t> chosen = {0};
  const StageTokens tokens = StageTokens::of_prefill(spans, chosen, rows, split);
  const Mask causal;
  std::vector<double> work;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t pairs = 0;
    for (const int64_t token : tokens.tokens_of(row))
      pairs += causal.visible(span.first_position + token, span.first_position + span.count).size();
    work.push_back(static_cast<double>(pairs));
  }
  return work;
}

struct Balance {
  double spread;   // the busiest row's work less the idlest's, as a part of the busiest's
  double busiest;  // its work, over the mean: what all wait for
};

Balance balance_of(const Span& span, int64_t rows, ContextSplit split) {
  const auto work = work_of_rows(span, rows, split);
  const auto [least, most] = std::ranges::minmax(work);
  return {.spread = (most - least) / most,
          .busiest = most * static_cast<double>(rows) / std::accumulate(work.begin(), work.end(), 0.0)};
}

std::vector<int64_t> lengths() {
  std::vector<int64_t> all;
  for (int64_t length = 256; length < 320; ++length) all.push_back(length);
  for (int64_t length = 320; length < 5000; length += 97) all.push_back(length);
  all.insert(all.end(), {511, 512, 513, 1024, 4096, 8191, 8192});
  return all;
}

// Of n tokens in d rows, rows that take turns have n / d each, and each of them sees up to d - 1 keys more than its
// neighbour's: 2 (d - 1) / n of the work. In 8 rows that falls below 5 % at 280 tokens; no row has 3 % more than the
// mean at 256 already.
TEST(StageTokens, RowsThatTakeTurnsHaveTheSameCausalWork) {
  for (int64_t rows = 2; rows <= 8; ++rows)
    for (const int64_t length : lengths())
      for (const int64_t first : {0, 1000}) {
        SCOPED_TRACE(testing::Message() << length << " tokens from " << first << " on in " << rows << " rows");
        const Balance balance = balance_of({0, first, length}, rows, ContextSplit::strided);
        if (first == 0) {
          EXPECT_LT(balance.spread, rows < 8 || length >= 280 ? 0.05 : 0.055);
          EXPECT_LT(balance.busiest, 1.03);
        }
        // Behind other tokens it is the row with a token more that has more to do: d / n at most.
        EXPECT_LT(balance.busiest, 1.03 + (first == 0 ? 0.0 : static_cast<double>(rows) / static_cast<double>(length)));
      }
}

// Of contiguous rows the last one's tokens see nearly all keys, the first one's few: (2 d - 1) / d of the mean.
TEST(StageTokens, TheLastOfContiguousRowsHasNearlyTwiceTheCausalWork) {
  for (int64_t rows = 2; rows <= 8; ++rows)
    for (const int64_t length : lengths()) {
      SCOPED_TRACE(testing::Message() << length << " tokens in " << rows << " rows");
      const Balance balance = balance_of({0, 0, length}, rows, ContextSplit::contiguous);
      const double factor = static_cast<double>(2 * rows - 1) / static_cast<double>(rows);
      EXPECT_NEAR(balance.busiest, factor, 0.05);
      EXPECT_GT(balance.spread, 0.6);
    }
}

// [MASK-27]: a cache that has all of a sequence's tokens takes a prefix at once; one with a share keeps it whole
// anyway.
TEST(StageTokens, OwnPartsKeepAPrefixWhereARankHasAllTokens) {
  const std::vector<Span> spans = {{.slot = 3, .first_position = 100, .count = 300, .prefix = 200}};
  const Span all = own_parts({.ranks = 1, .index = 0}, spans).front();
  EXPECT_EQ(all.count, 300);
  EXPECT_EQ(all.prefix, 200);
  const Span share = own_parts({.ranks = 2, .index = 0}, spans).front();
  EXPECT_EQ(share.count, 156);
  EXPECT_EQ(share.prefix, 0);
}

}  // namespace
}  // namespace regard
