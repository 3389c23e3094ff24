#include "layers/stage_tokens.h"

namespace regard {

std::vector<Span> own_parts(const TokenShare& share, std::span<const Span> spans) {
  std::vector<Span> own;
  for (const Span& span : spans) {
    const int64_t first = share.count_below(span.first_position);
    const int64_t count = share.count_below(span.first_position + span.count) - first;
    // Whoever has only a share keeps all of it, so that pieces don't matter.
    const int64_t prefix = share.is_all() ? span.prefix : 0;
    if (span.slot != -1 && count > 0)
      own.push_back({.slot = span.slot, .first_position = first, .count = count, .prefix = prefix});
  }
  return own;
}

StageTokens::StageTokens(std::span<const Span> spans, std::vector<std::vector<SpanShare>> shares)
    : shares_(std::move(shares)) {
  std::vector<int64_t> starts;
  int64_t start = 0;
  for (const Span& span : spans) {
    starts.push_back(start);
    start += span.count;
  }
  for (const auto& of_row : shares_) {
    auto& tokens = tokens_.emplace_back();
    for (const SpanShare& share : of_row)
      for (int64_t i = 0; i < share.count; ++i) tokens.push_back(starts[share.span] + share.first + i * share.stride);
  }
}

StageTokens StageTokens::of_prefill(std::span<const Span> spans, std::span<const size_t> chosen, int64_t rows,
                                    ContextSplit split) {
  std::vector<std::vector<SpanShare>> shares(static_cast<size_t>(rows));
  for (const size_t index : chosen)
    for (int64_t row = 0; row < rows; ++row) {
      const SpanShare share = SpanShare::of_row(index, spans[index].count, rows, row, split);
      if (share.count > 0) shares[static_cast<size_t>(row)].push_back(share);
    }
  return {spans, std::move(shares)};
}

StageTokens StageTokens::of_decode(std::span<const Span> spans, std::span<const size_t> chosen, int64_t rows,
                                   int64_t slots_a_row) {
  std::vector<std::vector<SpanShare>> shares(static_cast<size_t>(rows));
  for (const size_t index : chosen) {
    const int64_t slot = std::max<int64_t>(0, spans[index].slot);
    const int64_t row = rows == 1 ? 0 : std::min(rows - 1, slot / slots_a_row);
    shares[static_cast<size_t>(row)].push_back({.span = index, .first = 0, .stride = 1, .count = spans[index].count});
  }
  return {spans, std::move(shares)};
}

}  // namespace regard
