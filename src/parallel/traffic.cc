// What ranks send, formula by formula. Words: a stage has d rows of T ranks; n tokens of the call belong to a row; H is
// the hidden size. An exchange is one round in which a rank sends to all others of its group.

#include "parallel/traffic.h"

#include <algorithm>

#include "cache/pieces.h"
#include "parallel/kv_traffic.h"
#include "parallel/traffic_stage.h"
#include "regard/cache.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Bounds that keep every product of this file inside int64.
constexpr int64_t kMostRanks = int64_t{1} << 14;
constexpr int64_t kMostTokens = int64_t{1} << 24;

RowHeads heads_of(const LayerShape& shape, const ParallelConfig& config, const RankMesh& mesh,
                  std::span<const int64_t> order) {
  return RowHeads::of({.heads = shape.num_attention_heads, .kv_heads = shape.num_key_value_heads}, shape.mask, config,
                      mesh, 0, order);
}

// Who has what of a layer in both stages.
struct Heads {
  Heads(const LayerShape& shape, const ParallelConfig& config)
      : prefill_mesh(config.tp_degree, config.cp_degree, config.switch_cc),
        decode_mesh(config.tp_degree, config.attention_dp_degree, config.switch_cc),
        orders(orders_of(config, shape.num_key_value_heads)),
        prefill(heads_of(shape, config, prefill_mesh, orders.prefill)),
        decode(heads_of(shape, config, decode_mesh, orders.decode)) {}

  RankMesh prefill_mesh, decode_mesh;
  RankOrders orders;
  RowHeads prefill, decode;
};

std::vector<TokenRun> runs_of_row(const LayerCall& call, int64_t row) {
  std::vector<TokenRun> runs;
  for (const TokenRun& run : call.runs)
    if (run.row == row) runs.push_back(run);
  return runs;
}

// A row's tokens go through the layer `most` at a time, but prefixes are not cut.
Pieces cut(const std::vector<TokenRun>& runs, int64_t most) {
  Pieces pieces;
  for (TokenCursor at; at.run < runs.size();) pieces.add(next_piece(runs, most, at), 1);
  return pieces;
}

// The last key that any token of a row's tokens first..first+count-1 sees; -1: none.
int64_t last_key_of(const LayerCall& call, const std::vector<TokenRun>& runs, int64_t first, int64_t count) {
  int64_t last = -1;
  int64_t before = 0;
  for (const TokenRun& run : runs) {
    const int64_t end = std::min(first + count, before + run.count);
    if (!run.is_skipped && std::max(first, before) < end)
      last = std::max(
          last,
          call.shape.mask.visible(run.first + end - before - 1, run.first + run.count, run.first + run.prefix).last);
    before += run.count;
  }
  return last;
}

// The g ranks with copies of a KV head share its tokens: each sends its queries to the g - 1 others, and to each of
// them its part of attention for that rank's heads: values, largest score, sum of weights, in f32. In deterministic
// mode it sends those of each run of keys that it keeps by themselves.
void flash_decoding(TrafficStage& stage, const LayerCall& call, const ParallelConfig& config) {
  const int64_t group = stage.heads().token_share_of(0).ranks;
  if (call.kept == KeptTokens::none || group == 1) return;
  const int64_t per_token = stage.heads().sharding.local_heads() * bytes_of(DType::f32) * (group - 1);
  stage.exchange(group, stage.pieces(), [&](int64_t row, int64_t, RankTraffic& rank) {
    rank.queries += stage.row_tokens(row) * per_token * call.shape.head_dim;
  });
  stage.exchange(group, stage.pieces(), [&](int64_t row, int64_t column, RankTraffic& rank) {
    const int64_t tokens = stage.row_tokens(row);
    int64_t sets = tokens;  // times tokens
    if (config.deterministic) {
      const TokenShare share = stage.heads().token_share_of(column);
      const std::vector<TokenRun> runs = runs_of_row(call, row);
      sets = 0;
      int64_t before = 0;
      stage.pieces_of_row(row).for_each([&](int64_t count) {
        sets += count * pieces_of(share.count_below(last_key_of(call, runs, before, count) + 1), TokenShare::kRun);
        before += count;
      });
    }
    rank.partials += sets * per_token * (call.shape.v_head_dim + 2);
  });
}

void check(const LayerCall& call, const ParallelConfig& config) {
  call.shape.check();
  require(config.tp_degree <= kMostRanks, "traffic: tp_degree is {}, expected {} at most", config.tp_degree,
          kMostRanks);
  int64_t tokens = 0;
  for (const TokenRun& run : call.runs) {
    require(run.first >= 0 && run.first <= kMostTokens && run.count >= 0 && run.count <= kMostTokens,
            "traffic: a run has {} tokens from position {} on, expected 0 to {} of each", run.count, run.first,
            kMostTokens);
    require(run.prefix >= 0 && run.prefix <= run.count, "traffic: a run has a prefix of {} tokens, expected 0 to {}",
            run.prefix, run.count);
    require(run.row >= 0 && run.row < config.attention_dp_degree, "traffic: a run's row is {}, expected 0 to {}",
            run.row, config.attention_dp_degree - 1);
    tokens += run.count;
    require(tokens <= kMostTokens, "traffic: the call has more than {} tokens", kMostTokens);
  }
}

// Where the stages are spread alike, prefill is computed as decode is.
bool spreads_stages_differently(const Heads& heads) {
  return heads.prefill_mesh.rows() > 1 || heads.decode_mesh.rows() > 1 || !heads.decode.token_share_of(0).is_all();
}

}  // namespace

int64_t LayerTraffic::total() const {
  int64_t sum = 0;
  for (const RankTraffic& rank : ranks) sum += rank.total();
  return sum;
}

int64_t LayerTraffic::most_of_a_rank() const {
  int64_t most = 0;
  for (const RankTraffic& rank : ranks) most = std::max(most, rank.total());
  return most;
}

LayerTraffic prefill_traffic(const LayerCall& call, const ParallelConfig& config) {
  check(call, config);
  const Heads heads(call.shape, config);
  if (!spreads_stages_differently(heads)) return decode_traffic(call, config);
  const KvHolders holders(config, heads.prefill, heads.decode);
  TrafficStage stage(call, config, heads.prefill_mesh, heads.prefill);
  for (int64_t row = 0; row < stage.rows(); ++row) {
    int64_t tokens = 0;
    for (const TokenRun& run : call.runs)
      tokens += RowsOfRun(run, config.cp_degree, config.context_split).tokens_of(row);
    stage.set_pieces(row, {tokens, KvCache::kTokensAtOnce});
  }
  if (config.sequence_parallel_enabled) stage.gather_hidden();
  fetch_prior(stage, call, config, holders);
  stage.add_norms();
  if (config.kv_exchange == KvExchange::ring && stage.rows() > 1 && !call.shape.mask.reach())
    pass_keys_values_round(stage, call, config);
  else
    exchange_keys_values(stage, call, config, holders);
  fetch_missing_heads(stage, call, holders);
  if (config.sequence_parallel_enabled)
    stage.reduce_scatter();
  else
    stage.sum_then_gather_rows();
  return std::move(stage).traffic();
}

LayerTraffic decode_traffic(const LayerCall& call, const ParallelConfig& config) {
  check(call, config);
  const Heads heads(call.shape, config);
  // Where queries see later tokens, all go at once.
  const int64_t asked = call.shape.windowed_context_encoding_size;
  const int64_t piece = !call.shape.mask.is_causal ? kMostTokens : asked > 0 ? asked : KvCache::kTokensAtOnce;
  TrafficStage stage(call, config, heads.decode_mesh, heads.decode);
  for (int64_t row = 0; row < stage.rows(); ++row) stage.set_pieces(row, cut(runs_of_row(call, row), piece));
  if (config.sequence_parallel_enabled) stage.gather_hidden();
  stage.add_norms();
  if (config.flash_decoding_enabled) flash_decoding(stage, call, config);
  // With one row the three are the same sum.
  const auto dispatch = stage.rows() == 1 ? OutputDispatch::AR_AG : config.output_dispatch;
  if (config.sequence_parallel_enabled) {
    stage.reduce_scatter();
  } else if (dispatch == OutputDispatch::AR_AG) {
    stage.sum_then_gather_rows();
  } else if (dispatch == OutputDispatch::RS_AG) {
    stage.reduce_scatter();
    stage.gather_all_parts();
  } else {
    stage.gather_rows_then_sum();
  }
  return std::move(stage).traffic();
}

}  // namespace regard
