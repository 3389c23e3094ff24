// What ranks send, formula by formula. Words: a stage has d rows of T ranks; n tokens of the call belong to a row; H is
// the hidden size. An exchange is one round in which a rank sends to all others of its group.

#include "regard/traffic.h"

#include <algorithm>
#include <numeric>

#include "parallel/even_parts.h"
#include "regard/attention_config.h"
#include "regard/gqa_sharding.h"
#include "regard/rank_order.h"
#include "tensor/fail.h"

namespace regard {
namespace {

// Bounds that keep every product of this file inside int64.
constexpr int64_t kMostRanks = int64_t{1} << 14;
constexpr int64_t kMostWidth = int64_t{1} << 20;
constexpr int64_t kMostTokens = int64_t{1} << 24;

int64_t bytes_of(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }

int64_t part_size(int64_t count, int64_t parts, int64_t index) { return part_of(count, parts, index).count(); }

// The part of part_of that holds element `index`.
int64_t part_with(int64_t count, int64_t parts, int64_t index) { return ((index + 1) * parts - 1) / count; }

// One stage of one call while its traffic is added up.
class Stage {
 public:
  Stage(const LayerCall& call, const ParallelConfig& config, int64_t degree)
      : call_(call),
        mesh_(config.tp_degree, degree, config.switch_cc),
        heads_(call.shape.num_attention_heads, call.shape.num_key_value_heads, mesh_.columns(), config.gqa),
        sum_bytes_(bytes_of(config.rpl_reduce_dtype.value_or(DType::f32))),
        row_tokens_(static_cast<size_t>(degree)) {
    require(call.sums_of_column.empty() || std::ssize(call.sums_of_column) == mesh_.columns(),
            "traffic: sums_of_column has {} numbers, expected {} or none", call.sums_of_column.size(), mesh_.columns());
    traffic_.ranks.resize(static_cast<size_t>(config.tp_degree));
  }

  [[nodiscard]] int64_t rows() const { return mesh_.rows(); }
  [[nodiscard]] int64_t columns() const { return mesh_.columns(); }
  [[nodiscard]] const GqaSharding& heads() const { return heads_; }
  [[nodiscard]] int64_t hidden_size() const { return call_.shape.hidden_size; }
  [[nodiscard]] int64_t tokens() const { return std::accumulate(row_tokens_.begin(), row_tokens_.end(), int64_t{0}); }
  int64_t& row_tokens(int64_t row) { return row_tokens_[static_cast<size_t>(row)]; }
  [[nodiscard]] LayerTraffic traffic() && { return std::move(traffic_); }

  // One round among `group` ranks; add(row, column, traffic) adds what a rank sends in it.
  template <class Add>
  void exchange(int64_t group, const Add& add) {
    if (group == 1) return;
    traffic_.rounds += 1;
    traffic_.messages += group - 1;
    for (int64_t row = 0; row < rows(); ++row)
      for (int64_t column = 0; column < columns(); ++column)
        add(row, column, traffic_.ranks[static_cast<size_t>(mesh_.rank_at(row, column))]);
  }

  // Each rank has its part of the row's tokens, in the input's type, and sends it to the T - 1 others.
  void gather_hidden() {
    exchange(columns(), [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.entry +=
          part_size(row_tokens(row), columns(), column) * hidden_size() * bytes_of(call_.hidden) * (columns() - 1);
    });
  }

  // Each rank sends every other rank of the row that rank's part of its own sums over `row_elements(row)` numbers;
  // parts are cut at multiples of `grain`.
  template <class RowElements>
  void reduce_scatter(const RowElements& row_elements, int64_t grain) {
    exchange(columns(), [&](int64_t row, int64_t column, RankTraffic& rank) {
      const int64_t elements = row_elements(row);
      const int64_t own = part_size(elements / grain, columns(), column) * grain;
      rank.sums += (elements - own) * sums_of(column) * sum_bytes_;
    });
  }

  // Each rank sends its part of the row's sums to the others of a group of `group` ranks.
  template <class RowElements>
  void gather_parts(const RowElements& row_elements, int64_t group) {
    exchange(group, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.output += part_size(row_elements(row), columns(), column) * sum_bytes_ * (group - 1);
    });
  }

  // Sum over the row that every rank of it gets: n * H numbers in T flat parts.
  void all_reduce() {
    const auto elements = [&](int64_t row) { return row_tokens(row) * hidden_size(); };
    reduce_scatter(elements, 1);
    gather_parts(elements, columns());
  }

  // Each rank sends what it has for the row's tokens to the d - 1 ranks of its column: the sum, or, before it, its own
  // partial sums.
  void gather_rows(bool summed) {
    exchange(rows(), [&](int64_t row, int64_t column, RankTraffic& rank) {
      const int64_t sums = summed ? 1 : sums_of(column);
      rank.output += row_tokens(row) * hidden_size() * sums * sum_bytes_ * (rows() - 1);
    });
  }

 private:
  [[nodiscard]] int64_t sums_of(int64_t column) const {
    return call_.sums_of_column.empty() ? 1 : call_.sums_of_column[static_cast<size_t>(column)];
  }

  const LayerCall& call_;
  RankMesh mesh_;
  GqaSharding heads_;
  int64_t sum_bytes_;
  std::vector<int64_t> row_tokens_;
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

  [[nodiscard]] int64_t row_of(int64_t token) const {
    return split_ == ContextSplit::strided ? token % rows_ : part_with(run_.count, rows_, token);
  }

  // The other rows with one of the tokens after `token`, up to `last`.
  [[nodiscard]] int64_t rows_until(int64_t token, int64_t last) const {
    // Where a row has one token at most, or rows take turns, each further token is another row's.
    if (split_ == ContextSplit::strided || run_.count < rows_) return std::min(last - token, rows_ - 1);
    return row_of(last) - row_of(token);
  }

  // The other rows that need a token's key and value: all, if later calls may see it; else those whose tokens do.
  [[nodiscard]] int64_t needing(int64_t token, const Mask& mask) const {
    const int64_t position = run_.first + token;
    const int64_t end = run_.first + run_.count;
    if (mask.visible(end, end + 1).contains(position)) return rows_ - 1;
    int64_t last = end - 1;
    if (mask.sliding_window > 0) last = std::min(last, position + mask.sliding_window - 1);
    if (const int64_t size = mask.attention_chunk_size; size > 0)
      last = std::min(last, position / size * size + size - 1);
    return rows_until(token, last - run_.first);
  }

 private:
  TokenRun run_;
  int64_t rows_;
  ContextSplit split_;
};

// What the tokens of each row are sent to other rows, as tokens times receivers.
std::vector<int64_t> tokens_sent(const LayerCall& call, const ParallelConfig& config) {
  std::vector<int64_t> sent(static_cast<size_t>(config.cp_degree));
  for (const TokenRun& run : call.runs) {
    const RowsOfRun rows(run, config.cp_degree, config.context_split);
    for (int64_t token = 0; token < run.count; ++token)
      sent[static_cast<size_t>(rows.row_of(token))] += rows.needing(token, call.shape.mask);
  }
  return sent;
}

// Wide types travel as they are cached; what is quantised, as f32.
int64_t kv_wire_bytes(DType cache) {
  return cache == DType::bf16 || cache == DType::f16 ? bytes_of(cache) : bytes_of(DType::f32);
}

// Each rank sends the keys and values of its row's tokens, for its own KV heads, to the rows that need them.
void exchange_keys_values(Stage& stage, const LayerCall& call, const ParallelConfig& config) {
  const std::vector<int64_t> sent = tokens_sent(call, config);
  const int64_t token_bytes = stage.heads().local_kv_heads() * call.shape.kv_width() * kv_wire_bytes(call.cache);
  stage.exchange(stage.rows(), [&](int64_t row, int64_t, RankTraffic& rank) {
    rank.keys_values += sent[static_cast<size_t>(row)] * token_bytes;
  });
}

// The g ranks with copies of a KV head share its tokens: each sends its queries to the g - 1 others, and to each of
// them its part of attention for that rank's heads: values, largest score, sum of weights, in f32.
void flash_decoding(Stage& stage, const LayerShape& shape) {
  const int64_t group = stage.heads().kv_copies();
  const int64_t per_token = stage.heads().local_heads() * bytes_of(DType::f32) * (group - 1);
  stage.exchange(group, [&](int64_t row, int64_t, RankTraffic& rank) {
    rank.queries += stage.row_tokens(row) * per_token * shape.head_dim;
  });
  stage.exchange(group, [&](int64_t row, int64_t, RankTraffic& rank) {
    rank.partials += stage.row_tokens(row) * per_token * (shape.v_head_dim + 2);
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

}  // namespace

LayerShape LayerShape::of(const AttentionConfig& config) {
  return {.hidden_size = config.hidden_size,
          .num_attention_heads = config.num_attention_heads,
          .num_key_value_heads = config.num_key_value_heads,
          .head_dim = config.head_dim,
          .v_head_dim = config.v_head_dim,
          .mask = Mask::of(config)};
}

void LayerShape::check() const {
  const auto check_size = [](std::string_view name, int64_t value, int64_t most) {
    require(value >= 1 && value <= most, "layer shape: {} is {}, expected 1 to {}", name, value, most);
  };
  constexpr int64_t kMostHeads = int64_t{1} << 12;
  constexpr int64_t kMostHeadDim = int64_t{1} << 12;
  check_size("hidden_size", hidden_size, kMostWidth);
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
  Stage stage(call, config, config.cp_degree);
  for (const TokenRun& run : call.runs) {
    const RowsOfRun rows(run, config.cp_degree, config.context_split);
    for (int64_t row = 0; row < stage.rows(); ++row) stage.row_tokens(row) += rows.tokens_of(row);
  }
  if (config.sequence_parallel_enabled) stage.gather_hidden();
  exchange_keys_values(stage, call, config);
  if (config.sequence_parallel_enabled) {
    // Parts are whole tokens, and each rank keeps its own.
    const auto elements = [&](int64_t row) { return stage.row_tokens(row) * stage.hidden_size(); };
    stage.reduce_scatter(elements, stage.hidden_size());
  } else {
    stage.all_reduce();
    stage.gather_rows(/*summed=*/true);
  }
  return std::move(stage).traffic();
}

LayerTraffic decode_traffic(const LayerCall& call, const ParallelConfig& config) {
  check(call, config);
  Stage stage(call, config, config.attention_dp_degree);
  for (const TokenRun& run : call.runs) stage.row_tokens(run.row) += run.count;
  if (config.flash_decoding_enabled) flash_decoding(stage, call.shape);
  const auto own_elements = [&](int64_t row) { return stage.row_tokens(row) * stage.hidden_size(); };
  const auto all_elements = [&](int64_t) { return stage.tokens() * stage.hidden_size(); };
  // With one row the three are the same sum.
  const auto dispatch = stage.rows() == 1 ? OutputDispatch::AR_AG : config.output_dispatch;
  switch (dispatch) {
    case OutputDispatch::AR_AG:
      stage.all_reduce();
      stage.gather_rows(/*summed=*/true);
      break;
    case OutputDispatch::RS_AG:
      stage.reduce_scatter(own_elements, 1);
      stage.gather_parts(own_elements, config.tp_degree);
      break;
    case OutputDispatch::AG_AR:
      stage.gather_rows(/*summed=*/false);
      stage.reduce_scatter(all_elements, 1);
      stage.gather_parts(all_elements, stage.columns());
      break;
  }
  return std::move(stage).traffic();
}

}  // namespace regard
