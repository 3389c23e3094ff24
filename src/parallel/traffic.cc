// What ranks send. Keys and values are counted move by move, from the plan by which ranks exchange them; hidden states
// and their sums exchange by exchange. A stage has d rows of T ranks; H is the hidden size.

#include "parallel/traffic.h"

#include <algorithm>
#include <numeric>

#include "cache/pieces.h"
#include "parallel/context_plan.h"
#include "parallel/exchange_count.h"
#include "parallel/row_heads.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Bounds that keep every product of this file inside int64.
constexpr int64_t kMostRanks = int64_t{1} << 14;
constexpr int64_t kMostTokens = int64_t{1} << 24;
constexpr int64_t kMostWidth = int64_t{1} << 20;

int64_t bytes_of(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }
int64_t part_size(int64_t count, int64_t parts, int64_t index) { return part_of(count, parts, index).count; }

// Who has what of a layer in both stages.
struct Heads {
  Heads(const AttentionConfig& attention, const ParallelConfig& config)
      : prefill_mesh(config.tp_degree, config.cp_degree, config.switch_cc),
        decode_mesh(config.tp_degree, config.attention_dp_degree, config.switch_cc) {
    const RankOrders orders = orders_of(config, attention.num_key_value_heads);
    const auto of = [&](const RankMesh& mesh, std::span<const int64_t> order) {
      return RowHeads::of({.heads = attention.num_attention_heads, .kv_heads = attention.num_key_value_heads},
                          Mask::of(attention), config, mesh, 0, order);
    };
    prefill = of(prefill_mesh, orders.prefill);
    decode = of(decode_mesh, orders.decode);
  }
  // Where the stages are spread alike, prefill is computed as decode is.
  [[nodiscard]] bool differ() const {
    return prefill_mesh.rows() > 1 || decode_mesh.rows() > 1 || !decode.token_share_of(0).is_all();
  }

  RankMesh prefill_mesh, decode_mesh;
  RowHeads prefill, decode;
};

// The tokens of each row, in the pieces in which they go through a layer.
using RowPieces = std::vector<std::vector<int64_t>>;

int64_t sum_of(const std::vector<int64_t>& pieces) { return std::accumulate(pieces.begin(), pieces.end(), int64_t{0}); }

// One stage of one call while what its ranks send is counted.
class TrafficCount {
  using Groups = ExchangeCount::Groups;

 public:
  TrafficCount(const LayerCall& call, const ParallelConfig& config, int64_t ranks_per_host, const RankMesh& mesh,
               const RowHeads& heads, RowPieces pieces)
      : call_(call),
        config_(config),
        mesh_(mesh),
        heads_(heads),
        wire_(config.rpl_reduce_dtype.value_or(DType::f32)),
        pieces_(std::move(pieces)),
        in_row_(Groups::rows(mesh)),
        in_column_(Groups::columns(mesh)),
        count_(config.tp_degree, ranks_per_host) {
    const SumTree tree = heads.sum_tree(config.deterministic);
    const std::vector<ElementRange> leaves = heads.sum_leaves(config.deterministic);
    for (int64_t rank = 0; rank < config.tp_degree; ++rank) {
      const ElementRange& own = leaves[static_cast<size_t>(mesh.column_of(rank))];
      nodes_.push_back(std::ssize(tree.cover(own.first, own.end())));
    }
  }

  [[nodiscard]] LayerTraffic traffic() && { return std::move(count_).traffic(); }
  [[nodiscard]] int64_t rows() const { return mesh_.rows(); }

  // Rounds in which rows hand out keys and values of their tokens.
  void give(const std::vector<ContextPlan::Given>& given) {
    count_.count_rounds(in_column_, most_rounds());
    for (const auto& [giver, taker, tokens] : given)
      if (giver != taker)
        count_.send_to(giver, taker, &RankTraffic::keys_values,
                       tokens * heads_.sharding.local_kv_heads() * stored_bytes());
  }
  // Rounds in which they move between any ranks.
  void move(const std::vector<KvMove>& moves, int64_t rounds, int64_t RankTraffic::*part) {
    count_.count_rounds(Groups::all(config_.tp_degree), rounds);
    for (const KvMove& move : moves)
      if (move.giver != move.taker)
        count_.send_to(move.giver, move.taker, part, move.tokens() * move.heads * stored_bytes());
  }

  // Pieces of the row that has most.
  [[nodiscard]] int64_t most_pieces() const {
    int64_t most = 1;
    for (const auto& of_row : pieces_) most = std::max(most, std::ssize(of_row));
    return most;
  }

  // Rounds in which rows hand out 512 tokens each.
  [[nodiscard]] int64_t most_rounds() const {
    int64_t most = 1;
    for (int64_t row = 0; row < rows(); ++row)
      most = std::max(most, (row_tokens(row) + KvCache::kTokensAtOnce - 1) / KvCache::kTokensAtOnce);
    return most;
  }

  // Each rank has its part of the row's tokens, in the input's type, and sends it to the T - 1 others.
  void gather_hidden() {
    count_.gather(in_row_, 1, &RankTraffic::entry,
                  [&](int64_t rank) { return own_part(rank) * call_.attention.input_size() * bytes_of(call_.hidden); });
  }

  // For a norm over all heads, each rank sends the others a sum in f64 for each of its heads; the mean comes first.
  void add_norms() {
    const auto rounds_of = [](const std::optional<QKNorm>& norm) -> int64_t {
      if (!norm || norm->width != NormWidth::all) return 0;
      return norm->kind == NormKind::layer_norm ? 2 : 1;
    };
    const int64_t of_queries = rounds_of(call_.attention.q_layernorm);
    const int64_t of_keys = rounds_of(call_.attention.k_layernorm) + rounds_of(call_.attention.v_norm);
    const int64_t sums = of_queries * heads_.sharding.local_heads() + of_keys * heads_.sharding.local_kv_heads();
    count_.gather(in_row_, (of_queries + of_keys) * most_pieces(), &RankTraffic::norms, [&](int64_t rank) {
      return row_tokens(mesh_.row_of(rank)) * sums * static_cast<int64_t>(sizeof(double));
    });
  }

  // The g ranks with copies of a KV head share its tokens: each sends its queries to the g - 1 others, and to each of
  // them its part of attention for that rank's heads: values, largest score, sum of weights, in f32. In deterministic
  // mode it sends those of each run of keys that it keeps by themselves.
  void share_tokens() {
    const int64_t group = heads_.token_share_of(0).ranks;
    if (call_.kept == KeptTokens::none || group == 1) return;
    Groups same_head{.size = group, .of = {}};
    for (int64_t rank = 0; rank < config_.tp_degree; ++rank)
      same_head.of.push_back(mesh_.row_of(rank) * (columns() / group) + heads_.part(mesh_.column_of(rank)) / group);
    const int64_t per_token = heads_.sharding.local_heads() * bytes_of(DType::f32);
    count_.gather(same_head, most_pieces(), &RankTraffic::queries,
                  [&](int64_t rank) { return row_tokens(mesh_.row_of(rank)) * per_token * call_.attention.head_dim; });
    count_.gather(same_head, most_pieces(), &RankTraffic::partials, [&](int64_t rank) {
      return partial_sets(mesh_.row_of(rank), mesh_.column_of(rank)) * per_token * (call_.attention.v_head_dim + 2);
    });
  }

  // Each rank sends every other one of the row that rank's part of its own sums. Parts are whole tokens.
  void reduce_scatter() {
    count_.scatter_sums(
        in_row_, most_pieces(), [&](int64_t rank) { return own_part(rank) * call_.attention.hidden_size; }, nodes_,
        wire_);
  }

  // Each rank sends the tokens whose sums it has to all ranks of all rows.
  void gather_all_parts() {
    count_.gather(Groups::all(config_.tp_degree), 1, &RankTraffic::output,
                  [&](int64_t rank) { return own_part(rank) * hidden_bytes(); });
  }

  // Each rank sends its row's tokens to the d - 1 others of its column.
  void sum_then_gather_rows() {
    all_reduce(
        [&](int64_t row) -> const auto& { return pieces_[static_cast<size_t>(row)]; }, most_pieces());
    count_.gather(in_column_, most_rounds(), &RankTraffic::output,
                  [&](int64_t rank) { return row_tokens(mesh_.row_of(rank)) * hidden_bytes(); });
  }

  // The same with partial sums; then each row sums the tokens of all, in one piece.
  void gather_rows_then_sum() {
    count_.gather(in_column_, 1, &RankTraffic::output, [&](int64_t rank) {
      return RankSum::bytes_of(nodes_[static_cast<size_t>(rank)],
                               row_tokens(mesh_.row_of(rank)) * call_.attention.hidden_size, wire_);
    });
    std::vector<int64_t> all{0};
    for (int64_t row = 0; row < rows(); ++row) all.front() += row_tokens(row);
    all_reduce(
        [&](int64_t) -> const auto& { return all; }, 1);
  }

 private:
  [[nodiscard]] int64_t columns() const { return mesh_.columns(); }
  [[nodiscard]] int64_t row_tokens(int64_t row) const { return sum_of(pieces_[static_cast<size_t>(row)]); }
  [[nodiscard]] int64_t own_part(int64_t rank) const {
    return part_size(row_tokens(mesh_.row_of(rank)), columns(), mesh_.column_of(rank));
  }
  // Of a token's finished hidden state.
  [[nodiscard]] int64_t hidden_bytes() const { return call_.attention.hidden_size * bytes_of(call_.hidden); }

  // A token of a head as a cache stores it; without a cache as f32.
  [[nodiscard]] int64_t stored_bytes() const {
    const DType cache = call_.kept == KeptTokens::none ? DType::f32 : call_.cache;
    const bool plain = cache == DType::f32 || cache == DType::bf16 || cache == DType::f16;
    const int64_t scales = plain ? 0 : 2 * bytes_of(DType::f32);
    return (call_.attention.head_dim + call_.attention.v_head_dim) * bytes_of(plain ? cache : DType::u8) + scales;
  }

  // How many partial results of a token a rank makes, summed over the row's tokens.
  [[nodiscard]] int64_t partial_sets(int64_t row, int64_t column) const {
    if (!config_.deterministic) return row_tokens(row);
    const TokenShare share = heads_.token_share_of(column);
    int64_t sets = 0;
    int64_t before = 0;
    for (const int64_t count : pieces_[static_cast<size_t>(row)]) {
      const int64_t keys = share.count_below(last_key_of(row, {before, before + count - 1}) + 1);
      sets += count * ((keys + TokenShare::kRun - 1) / TokenShare::kRun);
      before += count;
    }
    return sets;
  }

  // The last key that any of a row's tokens sees; -1: none.
  [[nodiscard]] int64_t last_key_of(int64_t row, Interval tokens) const {
    const Mask mask = Mask::of(call_.attention);
    int64_t last = -1;
    int64_t before = 0;
    for (const TokenRun& run : call_.runs) {
      if (run.row != row) continue;
      const Interval own = tokens.intersect({before, before + run.count - 1});
      if (!run.is_skipped && !own.empty())
        last = std::max(
            last, mask.visible(run.first + own.last - before, run.first + run.count, run.first + run.prefix).last);
      before += run.count;
    }
    return last;
  }

  // A sum over the row that every rank of it gets: the numbers of a piece are cut in T flat parts.
  template <class PiecesOf>
  void all_reduce(const PiecesOf& pieces_of, int64_t pieces) {
    const auto own = [&](int64_t rank) {
      int64_t numbers = 0;
      for (const int64_t tokens : pieces_of(mesh_.row_of(rank)))
        numbers += part_size(tokens * call_.attention.hidden_size, columns(), mesh_.column_of(rank));
      return numbers;
    };
    count_.all_reduce(in_row_, pieces, own, nodes_, wire_, call_.hidden);
  }

  const LayerCall& call_;
  const ParallelConfig& config_;
  const RankMesh& mesh_;
  const RowHeads& heads_;
  DType wire_;
  RowPieces pieces_;
  std::vector<int64_t> nodes_;  // by rank: of the tree of sums, those that it has
  Groups in_row_, in_column_;
  ExchangeCount count_;
};

LayerCall checked(const LayerCall& call, const ParallelConfig& config, int64_t ranks_per_host) {
  require(ranks_per_host >= 1, "traffic: ranks_per_host is {}, expected 1 or more", ranks_per_host);
  LayerCall valid = call;
  valid.attention = call.attention.validated();
  const AttentionConfig& c = valid.attention;
  for (const auto& [name, value] : {std::pair{"hidden_size", c.hidden_size},
                                    {"the width of all query heads", c.num_attention_heads * c.head_dim},
                                    {"the width of all value heads", c.num_attention_heads * c.v_head_dim}})
    require(value <= kMostWidth, "traffic: {} is {}, expected {} at most", name, value, kMostWidth);
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
  return valid;
}

// The positions of a run that caches keep.
Interval kept_of(const LayerCall& call, const TokenRun& run) {
  if (call.kept == KeptTokens::none || run.is_skipped) return {};
  const int64_t end = run.first + run.count;
  const int64_t seen =
      call.kept == KeptTokens::all ? 0 : Mask::of(call.attention).first_seen(end) / call.page_size * call.page_size;
  return {std::max(run.first, seen), end - 1};
}

std::vector<ContextSequence> sequences_of(const LayerCall& call, const ParallelConfig& config) {
  std::vector<ContextSequence> sequences;
  for (const TokenRun& run : call.runs) {
    ContextSequence sequence{.span = {.slot = run.is_skipped ? -1 : 0,
                                      .first_position = run.first,
                                      .count = run.count,
                                      .prefix = run.prefix},
                             .begin = call.kept == KeptTokens::none ? run.first : 0,
                             .keeping_row = run.row,
                             .kept = kept_of(call, run)};
    for (int64_t row = 0; row < config.cp_degree; ++row)
      sequence.shares.push_back(
          SpanShare::of_row(sequences.size(), run.count, config.cp_degree, row, config.context_split));
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

RowPieces prefill_pieces(const std::vector<ContextSequence>& sequences, int64_t rows) {
  RowPieces pieces(static_cast<size_t>(rows));
  for (size_t row = 0; row < pieces.size(); ++row) {
    int64_t tokens = 0;
    for (const ContextSequence& sequence : sequences) tokens += sequence.shares[row].count;
    for (; tokens > 0; tokens -= pieces[row].back()) pieces[row].push_back(std::min(tokens, KvCache::kTokensAtOnce));
  }
  return pieces;
}

// A row's tokens go through the layer so many at a time, but prefixes are not cut; where queries see later tokens, all
// go at once.
RowPieces decode_pieces(const LayerCall& call, int64_t rows) {
  const int64_t asked = call.attention.inference.windowed_context_encoding_size;
  const int64_t at_once = asked > 0 ? std::min(asked, KvCache::kTokensAtOnce) : KvCache::kTokensAtOnce;
  RowPieces pieces(static_cast<size_t>(rows));
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<TokenRun> runs;
    for (const TokenRun& run : call.runs)
      if (run.row == row && run.count > 0) runs.push_back(run);
    for (TokenCursor at; at.run < runs.size();)
      pieces[static_cast<size_t>(row)].push_back(
          next_piece(runs, call.attention.is_causal ? at_once : kMostTokens, at));
  }
  return pieces;
}

void count_keys_values(TrafficCount& count, const LayerCall& call, const ParallelConfig& config, const Heads& heads,
                       std::vector<ContextSequence> sequences) {
  const KvHolders holders(config, heads.prefill, heads.decode);
  const ContextPlan plan(std::move(sequences), Mask::of(call.attention), holders, heads.prefill_mesh);
  // The moves of all rounds are counted in the first.
  constexpr int64_t kAll = ContextPlan::kAllRanks;
  const Interval always{0, kMostTokens};
  const auto windows = static_cast<int64_t>(call.kept == KeptTokens::none ? 0 : plan.prior_windows().size());
  if (windows > 0) count.move(plan.prior(kAll, always), windows, &RankTraffic::prior);
  if (count.rows() > 1) count.give(plan.computed_in_all());
  if (!holders.keeps_what_it_computes())
    count.move(plan.missing(kAll, always), std::ssize(plan.kept_windows()), &RankTraffic::keys_values);
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

LayerTraffic prefill_traffic(const LayerCall& asked, const ParallelConfig& config, int64_t ranks_per_host) {
  const LayerCall call = checked(asked, config, ranks_per_host);
  const Heads heads(call.attention, config);
  if (!heads.differ()) return decode_traffic(call, config, ranks_per_host);
  std::vector<ContextSequence> sequences = sequences_of(call, config);
  TrafficCount count(call, config, ranks_per_host, heads.prefill_mesh, heads.prefill,
                     prefill_pieces(sequences, config.cp_degree));
  if (config.sequence_parallel_enabled) count.gather_hidden();
  count.add_norms();
  count_keys_values(count, call, config, heads, std::move(sequences));
  if (config.sequence_parallel_enabled)
    count.reduce_scatter();
  else
    count.sum_then_gather_rows();
  return std::move(count).traffic();
}

LayerTraffic decode_traffic(const LayerCall& asked, const ParallelConfig& config, int64_t ranks_per_host) {
  const LayerCall call = checked(asked, config, ranks_per_host);
  const Heads heads(call.attention, config);
  TrafficCount count(call, config, ranks_per_host, heads.decode_mesh, heads.decode,
                     decode_pieces(call, heads.decode_mesh.rows()));
  if (config.sequence_parallel_enabled) count.gather_hidden();
  count.add_norms();
  if (config.flash_decoding_enabled) count.share_tokens();
  // With one row the three are the same sum.
  const auto dispatch = count.rows() == 1 ? OutputDispatch::AR_AG : config.output_dispatch;
  if (config.sequence_parallel_enabled) {
    count.reduce_scatter();
  } else if (dispatch == OutputDispatch::AR_AG) {
    count.sum_then_gather_rows();
  } else if (dispatch == OutputDispatch::RS_AG) {
    count.reduce_scatter();
    count.gather_all_parts();
  } else {
    count.gather_rows_then_sum();
  }
  return std::move(count).traffic();
}

}  // namespace regard
