// What ranks send, formula by formula. Words: a stage has d rows of T ranks; n tokens of the call belong to a row; H is
// the hidden size. An exchange is one round in which a rank sends to all others of its group.

#include "regard/traffic.h"

#include <algorithm>
#include <numeric>

#include "parallel/even_parts.h"
#include "parallel/kv_holders.h"
#include "regard/attention_config.h"
#include "regard/cache.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Bounds that keep every product of this file inside int64.
constexpr int64_t kMostRanks = int64_t{1} << 14;
constexpr int64_t kMostWidth = int64_t{1} << 20;
constexpr int64_t kMostTokens = int64_t{1} << 24;

int64_t bytes_of(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }

int64_t part_size(int64_t count, int64_t parts, int64_t index) { return part_of(count, parts, index).count; }

int64_t pieces_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The sum of of_piece(tokens) over the pieces of at most `size` of so many tokens.
template <class OfPiece>
int64_t sum_over_pieces(int64_t tokens, int64_t size, OfPiece of_piece) {
  const int64_t rest = tokens % size;
  return (tokens >= size ? tokens / size * of_piece(size) : 0) + (rest > 0 ? of_piece(rest) : 0);
}

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

// One stage of one call while its traffic is added up.
class Stage {
 public:
  // Tokens go through projections in pieces.
  Stage(const LayerCall& call, const ParallelConfig& config, const RankMesh& mesh, const RowHeads& heads,
        int64_t piece_tokens)
      : call_(call),
        mesh_(mesh),
        heads_(heads),
        sum_bytes_(bytes_of(config.rpl_reduce_dtype.value_or(DType::f32))),
        piece_tokens_(piece_tokens),
        row_tokens_(static_cast<size_t>(mesh.rows())) {
    const SumTree tree = heads.sum_tree(config.deterministic);
    for (const ElementRange& leaves : heads.sum_leaves(config.deterministic))
      sums_of_column_.push_back(std::ssize(tree.cover(leaves.first, leaves.end())));
    traffic_.ranks.resize(static_cast<size_t>(config.tp_degree));
  }

  [[nodiscard]] const RankMesh& mesh() const { return mesh_; }
  [[nodiscard]] int64_t rows() const { return mesh_.rows(); }
  [[nodiscard]] int64_t columns() const { return mesh_.columns(); }
  [[nodiscard]] const RowHeads& heads() const { return heads_; }
  [[nodiscard]] int64_t piece_tokens() const { return piece_tokens_; }
  int64_t& row_tokens(int64_t row) { return row_tokens_[static_cast<size_t>(row)]; }
  RankTraffic& of_rank(int64_t rank) { return traffic_.ranks[static_cast<size_t>(rank)]; }
  [[nodiscard]] LayerTraffic traffic() && { return std::move(traffic_); }

  void count_rounds(int64_t rounds, int64_t messages) {
    traffic_.rounds += rounds;
    traffic_.messages += rounds * messages;
  }

  // Rounds among `group` ranks; add(row, column, traffic) adds what a rank sends in all of them.
  template <class Add>
  void exchange(int64_t group, int64_t rounds, const Add& add) {
    if (group == 1) return;
    count_rounds(rounds, group - 1);
    for (int64_t row = 0; row < rows(); ++row)
      for (int64_t column = 0; column < columns(); ++column) add(row, column, of_rank(mesh_.rank_at(row, column)));
  }

  // Pieces of the row that has most.
  [[nodiscard]] int64_t pieces() const {
    return std::max<int64_t>(1, pieces_of(*std::ranges::max_element(row_tokens_), piece_tokens_));
  }

  // Each rank has its part of the row's tokens, in the input's type, and sends it to the T - 1 others.
  void gather_hidden() {
    const int64_t width = call_.shape.input_size > 0 ? call_.shape.input_size : call_.shape.hidden_size;
    exchange(columns(), 1, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.entry += part_size(row_tokens(row), columns(), column) * width * bytes_of(call_.hidden) * (columns() - 1);
    });
  }

  // For a norm over all heads, each rank sends the others a sum in f64 for each of its heads; the mean comes first.
  void add_norms() {
    const LayerShape& shape = call_.shape;
    const GqaSharding& sharding = heads_.sharding;
    const int64_t sums = shape.query_totals * sharding.local_heads() +
                         (shape.key_totals + shape.value_totals) * sharding.local_kv_heads();
    const int64_t rounds = shape.query_totals + shape.key_totals + shape.value_totals;
    exchange(columns(), rounds * pieces(), [&](int64_t row, int64_t, RankTraffic& rank) {
      rank.norms += row_tokens(row) * sums * static_cast<int64_t>(sizeof(double)) * (columns() - 1);
    });
  }

  // Each rank sends every other one of the row that rank's part of its own sums. Parts are whole tokens.
  void reduce_scatter() {
    exchange(columns(), pieces(), [&](int64_t row, int64_t column, RankTraffic& rank) {
      const int64_t own = part_size(row_tokens(row), columns(), column);
      rank.sums += (row_tokens(row) - own) * call_.shape.hidden_size * sums_of(column) * sum_bytes_;
    });
  }

  // Each rank sends the tokens whose sums it has to all ranks of all rows.
  void gather_all_parts() {
    exchange(rows() * columns(), 1, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.output += part_size(row_tokens(row), columns(), column) * row_bytes() * (rows() * columns() - 1);
    });
  }

  // A sum over the row that every rank of it gets: the numbers of a piece are cut in T flat parts, which are exchanged
  // before they are summed and after.
  template <class RowTokens>
  void all_reduce(const RowTokens& tokens_of, int64_t piece_tokens, int64_t pieces) {
    const int64_t width = call_.shape.hidden_size;
    const auto own = [&](int64_t row, int64_t column) {
      return sum_over_pieces(tokens_of(row), piece_tokens,
                             [&](int64_t tokens) { return part_size(tokens * width, columns(), column); });
    };
    exchange(columns(), pieces, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.sums += (tokens_of(row) * width - own(row, column)) * sums_of(column) * sum_bytes_;
    });
    exchange(columns(), pieces, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.output += own(row, column) * bytes_of(call_.hidden) * (columns() - 1);
    });
  }

  // Each rank sends its row's tokens to the d - 1 others of its column.
  void sum_then_gather_rows() {
    all_reduce([&](int64_t row) { return row_tokens(row); }, piece_tokens_, pieces());
    exchange(rows(), 1, [&](int64_t row, int64_t, RankTraffic& rank) {
      rank.output += row_tokens(row) * row_bytes() * (rows() - 1);
    });
  }

  // The same with partial sums; then each row sums the tokens of all, in one piece.
  void gather_rows_then_sum() {
    exchange(rows(), 1, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.output += row_tokens(row) * call_.shape.hidden_size * sums_of(column) * sum_bytes_ * (rows() - 1);
    });
    const int64_t all = std::accumulate(row_tokens_.begin(), row_tokens_.end(), int64_t{0});
    all_reduce([&](int64_t) { return all; }, std::max<int64_t>(1, all), 1);
  }

 private:
  [[nodiscard]] int64_t sums_of(int64_t column) const { return sums_of_column_[static_cast<size_t>(column)]; }
  // Of a token's finished hidden state.
  [[nodiscard]] int64_t row_bytes() const { return call_.shape.hidden_size * bytes_of(call_.hidden); }

  const LayerCall& call_;
  const RankMesh& mesh_;
  const RowHeads& heads_;
  int64_t sum_bytes_;
  int64_t piece_tokens_;
  std::vector<int64_t> row_tokens_;
  std::vector<int64_t> sums_of_column_;  // that a rank holds: the nodes of the tree that cover its heads
  LayerTraffic traffic_;
};

// How the tokens of a run are dealt out to rows.
class RowsOfRun {
 public:
  RowsOfRun(const TokenRun& run, int64_t rows, ContextSplit split) : run_(run), rows_(rows), split_(split) {}

  [[nodiscard]] int64_t tokens_of(int64_t row) const {
    if (split_ == ContextSplit::strided) return (run_.count - row + rows_ - 1) / rows_;
    return part_size(run_.count, rows_, row);
  }

  // The row's tokens, as indices: the first, and the step from one to the next.
  [[nodiscard]] int64_t first_of(int64_t row) const {
    return split_ == ContextSplit::strided ? row : part_of(run_.count, rows_, row).first;
  }
  [[nodiscard]] int64_t step() const { return split_ == ContextSplit::strided ? rows_ : 1; }

  // The first position that the row's tokens see; its own first token's, which has one.
  [[nodiscard]] int64_t first_seen_by(int64_t row, const Mask& mask) const {
    return mask.visible(run_.first + first_of(row), run_.first + run_.count).first;
  }

  // Calls visit(tokens) with what the row's tokens see of the run, in disjoint intervals of indices.
  template <class Visit>
  void for_each_seen(int64_t row, const Mask& mask, Visit visit) const {
    int64_t begin = 0;
    for (int64_t i = 0, token = first_of(row); i < tokens_of(row); ++i, token += step()) {
      const Interval seen = mask.visible(run_.first + token, run_.first + run_.count);
      visit(Interval{std::max(begin, seen.first - run_.first), seen.last - run_.first});
      begin = seen.last - run_.first + 1;
    }
  }

  // Calls visit(row, token) for all tokens.
  template <class Visit>
  void for_each(Visit visit) const {
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t i = 0; i < tokens_of(row); ++i) visit(row, first_of(row) + i * step());
  }

 private:
  TokenRun run_;
  int64_t rows_;
  ContextSplit split_;
};

// The tokens of a run that caches keep: indices, both inclusive.
Interval kept_of(const LayerCall& call, const TokenRun& run) {
  if (call.kept == KeptTokens::none) return {};
  const int64_t end = run.first + run.count;
  const int64_t seen =
      call.kept == KeptTokens::all ? 0 : call.shape.mask.visible(end, end + 1).first / call.page_size * call.page_size;
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

// Each rank sends the keys and values of its row's tokens, for its own KV heads, to the ranks of its column that want
// them. Where some rank keeps a head that it does not compute, every row wants what is kept.
void exchange_keys_values(Stage& stage, const LayerCall& call, const ParallelConfig& config, const KvHolders& holders) {
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

// Head by head, every row passes on the tokens of all rows but the next one's, in d - 1 rounds.
void pass_keys_values_round(Stage& stage, const LayerCall& call, const ParallelConfig& config) {
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

// Heads that a rank keeps but does not compute come from one that does.
void fetch_missing_heads(Stage& stage, const LayerCall& call, const KvHolders& holders) {
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

// What came before the call and its tokens see comes from the ranks that keep it, as it is stored.
void fetch_prior(Stage& stage, const LayerCall& call, const ParallelConfig& config, const KvHolders& holders) {
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

// The last key that any token of each of a row's pieces sees; -1: none.
std::vector<int64_t> last_keys_of_pieces(const LayerCall& call, int64_t row, int64_t tokens, int64_t piece_tokens) {
  std::vector<int64_t> last(static_cast<size_t>(pieces_of(tokens, piece_tokens)), -1);
  int64_t before = 0;
  for (const TokenRun& run : call.runs) {
    if (run.row != row) continue;
    const int64_t end = before + run.count;
    for (int64_t piece = before / piece_tokens; piece * piece_tokens < end && !run.is_skipped; ++piece) {
      const int64_t token = run.first + std::min((piece + 1) * piece_tokens, end) - before - 1;
      int64_t& known = last[static_cast<size_t>(piece)];
      known = std::max(known, call.shape.mask.visible(token, run.first + run.count).last);
    }
    before = end;
  }
  return last;
}

// The g ranks with copies of a KV head share its tokens: each sends its queries to the g - 1 others, and to each of
// them its part of attention for that rank's heads: values, largest score, sum of weights, in f32. In deterministic
// mode it sends those of each run of keys that it keeps by themselves.
void flash_decoding(Stage& stage, const LayerCall& call, const ParallelConfig& config) {
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
      sets = 0;
      int64_t before = 0;
      for (const int64_t last : last_keys_of_pieces(call, row, tokens, stage.piece_tokens())) {
        const int64_t count = std::min(stage.piece_tokens(), tokens - before);
        sets += count * pieces_of(share.count_below(last + 1), TokenShare::kRun);
        before += count;
      }
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

int64_t totals_of(const std::optional<QKNorm>& norm) {
  if (!norm || norm->width != NormWidth::all) return 0;
  return norm->kind == NormKind::layer_norm ? 2 : 1;
}

}  // namespace

LayerShape LayerShape::of(const AttentionConfig& config) {
  return {.hidden_size = config.hidden_size,
          .num_attention_heads = config.num_attention_heads,
          .num_key_value_heads = config.num_key_value_heads,
          .head_dim = config.head_dim,
          .v_head_dim = config.v_head_dim,
          .mask = Mask::of(config),
          .input_size = config.input_size() == config.hidden_size ? 0 : config.input_size(),
          .query_totals = totals_of(config.q_layernorm),
          .key_totals = totals_of(config.k_layernorm),
          .value_totals = totals_of(config.v_norm),
          .windowed_context_encoding_size = config.inference.windowed_context_encoding_size};
}

void LayerShape::check() const {
  const auto check_size = [](std::string_view name, int64_t value, int64_t most) {
    require(value >= 1 && value <= most, "layer shape: {} is {}, expected 1 to {}", name, value, most);
  };
  constexpr int64_t kMostHeads = int64_t{1} << 12;
  constexpr int64_t kMostHeadDim = int64_t{1} << 12;
  check_size("hidden_size", hidden_size, kMostWidth);
  check_size("input_size", input_size + 1, kMostWidth);
  check_size("num_attention_heads", num_attention_heads, kMostHeads);
  check_size("num_key_value_heads", num_key_value_heads, kMostHeads);
  check_size("head_dim", head_dim, kMostHeadDim);
  check_size("v_head_dim", v_head_dim, kMostHeadDim);
  check_size("the width of all heads", num_attention_heads * std::max(head_dim, v_head_dim), kMostWidth);
  require(num_attention_heads % num_key_value_heads == 0,
          "layer shape: num_key_value_heads is {}, expected a divisor of num_attention_heads {}", num_key_value_heads,
          num_attention_heads);
  check_size("sliding_window", mask.sliding_window + 1, int64_t{1} << 40);
  check_size("attention_chunk_size", mask.attention_chunk_size + 1, int64_t{1} << 40);
  check_size("windowed_context_encoding_size", windowed_context_encoding_size + 1, int64_t{1} << 40);
  for (const int64_t totals : {query_totals, key_totals, value_totals})
    require(totals >= 0 && totals <= 2, "layer shape: a norm needs {} sums over all heads, expected 0 to 2", totals);
}

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
  Stage stage(call, config, heads.prefill_mesh, heads.prefill, KvCache::kTokensAtOnce);
  for (const TokenRun& run : call.runs) {
    const RowsOfRun rows(run, config.cp_degree, config.context_split);
    for (int64_t row = 0; row < stage.rows(); ++row) stage.row_tokens(row) += rows.tokens_of(row);
  }
  if (config.sequence_parallel_enabled) stage.gather_hidden();
  fetch_prior(stage, call, config, holders);
  stage.add_norms();
  const Mask& mask = call.shape.mask;
  const bool local = mask.sliding_window > 0 || mask.attention_chunk_size > 0;
  if (config.kv_exchange == KvExchange::ring && stage.rows() > 1 && !local)
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
  Stage stage(call, config, heads.decode_mesh, heads.decode, piece);
  for (const TokenRun& run : call.runs) stage.row_tokens(run.row) += run.count;
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
