#include "parallel/kv_traffic.h"

#include <algorithm>
#include <numeric>

namespace regard {
namespace {

// The tokens of a run that caches keep: indices, both inclusive.
Interval kept_of(const LayerCall& call, const TokenRun& run) {
  if (call.kept == KeptTokens::none) return {};
  const int64_t end = run.first + run.count;
  const int64_t seen =
      call.kept == KeptTokens::all ? 0 : call.shape.mask.first_seen(end) / call.page_size * call.page_size;
  return {std::max<int64_t>(0, seen - run.first), run.count - 1};
}

// How many of some rows want each token.
class Wishes {
 public:
  explicit Wishes(int64_t tokens) : changes_(static_cast<size_t>(tokens) + 1) {}
  void add(Interval tokens) {
    if (tokens.empty()) return;
    ++changes_[static_cast<size_t>(tokens.first)];
    --changes_[static_cast<size_t>(tokens.last) + 1];
  }
  [[nodiscard]] std::vector<int64_t> counted() const {
    std::vector<int64_t> counts(changes_.size());
    std::partial_sum(changes_.begin(), changes_.end(), counts.begin());
    return counts;
  }

 private:
  std::vector<int64_t> changes_;
};

// What each row sends of a run, as tokens times receivers: a row wants what its tokens see, and, if it is one of
// `keeping`, what caches keep.
std::vector<int64_t> tokens_sent(const LayerCall& call, const TokenRun& run, const RowsOfRun& rows,
                                 const std::vector<bool>& keeping) {
  const Interval kept = kept_of(call, run);
  Wishes seen(run.count);
  Wishes seen_by_keepers(run.count);
  for (size_t row = 0; row < keeping.size(); ++row) {
    rows.for_each_seen(static_cast<int64_t>(row), call.shape.mask, [&](Interval tokens) {
      seen.add(tokens);
      if (keeping[row]) seen_by_keepers.add(tokens);
    });
  }
  const auto wishes = seen.counted();
  const auto of_keepers = seen_by_keepers.counted();
  const auto keepers = std::count(keeping.begin(), keeping.end(), true);
  std::vector<int64_t> sent(keeping.size());
  // A row's own tokens are among those that it sees.
  rows.for_each([&](int64_t row, int64_t token) {
    const auto at = static_cast<size_t>(token);
    sent[static_cast<size_t>(row)] += wishes[at] - 1 + (kept.contains(token) ? keepers - of_keepers[at] : 0);
  });
  return sent;
}

// Wide types travel as they are cached; what is quantised, as f32.
int64_t kv_wire_bytes(const LayerCall& call) {
  const bool narrow = call.cache == DType::bf16 || call.cache == DType::f16;
  return call.kept != KeptTokens::none && narrow ? bytes_of(call.cache) : bytes_of(DType::f32);
}

// A token of a head as a cache stores it.
int64_t stored_bytes(const LayerCall& call) {
  const bool plain = call.cache == DType::f32 || call.cache == DType::bf16 || call.cache == DType::f16;
  const int64_t scales = plain ? 0 : 2 * bytes_of(DType::f32);
  return call.shape.kv_width() * bytes_of(plain ? call.cache : DType::u8) + scales;
}

}  // namespace

void exchange_keys_values(TrafficStage& stage, const LayerCall& call, const ParallelConfig& config,
                          const KvHolders& holders) {
  const int64_t token_bytes = stage.heads().sharding.local_kv_heads() * call.shape.kv_width() * kv_wire_bytes(call);
  stage.exchange(stage.rows(), 1, [](int64_t, int64_t, RankTraffic&) {});
  for (const TokenRun& run : call.runs) {
    if (run.is_skipped || run.count == 0) continue;
    const RowsOfRun rows(run, stage.rows(), config.context_split);
    std::vector<bool> last;
    std::vector<int64_t> sent;
    for (int64_t column = 0; column < stage.columns(); ++column) {
      std::vector<bool> keeping;
      for (int64_t row = 0; row < stage.rows(); ++row)
        keeping.push_back(!holders.keeps_what_it_computes() ||
                          holders.decode_row(stage.mesh().rank_at(row, column)) == run.row);
      if (keeping != last) sent = tokens_sent(call, run, rows, keeping);
      last = keeping;
      for (int64_t row = 0; row < stage.rows(); ++row)
        stage.of_rank(stage.mesh().rank_at(row, column)).keys_values += sent[static_cast<size_t>(row)] * token_bytes;
    }
  }
}

void pass_keys_values_round(TrafficStage& stage, const LayerCall& call, const ParallelConfig& config) {
  const int64_t heads = stage.heads().sharding.local_kv_heads();
  const int64_t token_bytes = heads * call.shape.kv_width() * kv_wire_bytes(call);
  stage.count_rounds(heads * (stage.rows() - 1), 1);
  for (const TokenRun& run : call.runs) {
    if (run.is_skipped) continue;
    const RowsOfRun rows(run, stage.rows(), config.context_split);
    for (int64_t row = 0; row < stage.rows(); ++row)
      for (int64_t column = 0; column < stage.columns(); ++column)
        stage.of_rank(stage.mesh().rank_at(row, column)).keys_values +=
            (run.count - rows.tokens_of((row + 1) % stage.rows())) * token_bytes;
  }
}

void fetch_missing_heads(TrafficStage& stage, const LayerCall& call, const KvHolders& holders) {
  if (call.kept == KeptTokens::none || holders.keeps_what_it_computes()) return;
  const int64_t ranks = stage.rows() * stage.columns();
  stage.count_rounds(1, ranks - 1);
  for (int64_t reader = 0; reader < ranks; ++reader)
    for (const int64_t head : holders.missing(reader)) {
      RankTraffic& computer = stage.of_rank(holders.computer_of(head, reader));
      for (const TokenRun& run : call.runs) {
        const Interval kept = kept_of(call, run);
        if (run.is_skipped || run.row != holders.decode_row(reader) || kept.empty()) continue;
        const TokenShare share = holders.share(reader);
        const int64_t tokens = share.count_below(run.first + kept.last + 1) - share.count_below(run.first + kept.first);
        computer.keys_values += tokens * call.shape.kv_width() * kv_wire_bytes(call);
      }
    }
}

void fetch_prior(TrafficStage& stage, const LayerCall& call, const ParallelConfig& config, const KvHolders& holders) {
  if (call.kept == KeptTokens::none) return;
  const int64_t ranks = stage.rows() * stage.columns();
  bool any = false;
  for (const TokenRun& run : call.runs) {
    if (run.is_skipped || run.count == 0 || run.first == 0) continue;
    const RowsOfRun rows(run, stage.rows(), config.context_split);
    for (int64_t reader = 0; reader < ranks; ++reader) {
      const int64_t row = stage.mesh().row_of(reader);
      if (rows.tokens_of(row) == 0) continue;
      const int64_t from = rows.first_seen_by(row, call.shape.mask);
      if (from >= run.first) continue;
      any = true;
      for (const int64_t head : holders.computed(reader)) {
        if (head == -1) continue;
        for (int64_t index = 0; index < holders.shares(); ++index) {
          const int64_t keeper = holders.keeper_of(head, run.row, index, reader);
          const TokenShare share{.ranks = holders.shares(), .index = index};
          if (keeper != reader)
            stage.of_rank(keeper).prior +=
                (share.count_below(run.first) - share.count_below(from)) * stored_bytes(call);
        }
      }
    }
  }
  if (any) stage.count_rounds(1, ranks - 1);
}

}  // namespace regard
