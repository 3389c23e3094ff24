#include "planning/model_traffic.h"

#include <algorithm>
#include <numeric>

#include "cache/slot.h"
#include "parallel/exchange_count.h"
#include "parallel/mlp_traffic.h"
#include "parallel/rank_order.h"
#include "parallel/row_heads.h"
#include "parallel/span_share.h"
#include "regard/mask.h"

namespace regard {
namespace {

void add(LayerTraffic& sum, const LayerTraffic& traffic, int64_t times) {
  sum.ranks.resize(traffic.ranks.size());
  sum.between_hosts.resize(traffic.ranks.size());
  for (size_t rank = 0; rank < traffic.ranks.size(); ++rank) {
    for (const auto part : {&RankTraffic::entry, &RankTraffic::norms, &RankTraffic::keys_values, &RankTraffic::prior,
                            &RankTraffic::queries, &RankTraffic::partials, &RankTraffic::sums, &RankTraffic::output,
                            &RankTraffic::agreement})
      sum.ranks[rank].*part += times * (traffic.ranks[rank].*part);
    sum.between_hosts[rank] += times * traffic.between_hosts[rank];
  }
  sum.rounds += times * traffic.rounds;
  sum.rounds_between_hosts += times * traffic.rounds_between_hosts;
  sum.messages += times * traffic.messages;
}

// Tokens of each row of ranks.
std::vector<int64_t> tokens_of_rows(Stage stage, const std::vector<TokenRun>& runs, const ParallelConfig& config,
                                    int64_t rows) {
  std::vector<int64_t> tokens(static_cast<size_t>(rows));
  for (size_t run = 0; run < runs.size(); ++run)
    for (int64_t row = 0; row < rows; ++row)
      tokens[static_cast<size_t>(row)] +=
          stage == Stage::prefill ? SpanShare::of_row(run, runs[run].count, rows, row, config.context_split).count
                                  : (runs[run].row == row ? runs[run].count : 0);
  return tokens;
}

// Tokens that each rank has between layers with sequence parallelism.
std::vector<int64_t> own_tokens_of(Stage stage, const std::vector<TokenRun>& runs, const ParallelConfig& config) {
  const RankMesh mesh(config.tp_degree, stage == Stage::prefill ? config.cp_degree : config.attention_dp_degree,
                      config.switch_cc);
  const std::vector<int64_t> of_rows = tokens_of_rows(stage, runs, config, mesh.rows());
  std::vector<int64_t> own;
  for (int64_t rank = 0; rank < config.tp_degree; ++rank)
    own.push_back(part_of(of_rows[static_cast<size_t>(mesh.row_of(rank))], mesh.columns(), mesh.column_of(rank)).count);
  return own;
}

// Ranks that keep sequences, or some of their tokens, for others tell each other that their caches can take the step.
LayerTraffic agreement_of(const ModelSpec& model, const ParallelConfig& config, int64_t ranks_per_host) {
  ExchangeCount count(config.tp_degree, ranks_per_host);
  const bool shares = std::ranges::any_of(model.layers, [&](const LayerSpec& layer) {
    const AttentionConfig& c = layer.attention;
    const GqaSharding sharding(c.num_attention_heads, c.num_key_value_heads,
                               config.tp_degree / config.attention_dp_degree, config.gqa);
    return config.flash_decoding_enabled && !Mask::of(c).reach() && sharding.kv_copies() > 1;
  });
  if (config.attention_dp_degree > 1 || shares)
    count.gather(ExchangeCount::Groups::all(config.tp_degree), 1, &RankTraffic::agreement,
                 [](int64_t) { return int64_t{1}; });
  return std::move(count).traffic();
}

}  // namespace

int64_t ModelTraffic::most_of_a_rank() const {
  int64_t most = 0;
  for (size_t rank = 0; rank < attention.ranks.size(); ++rank) most = std::max(most, of_rank(rank));
  return most;
}

ModelTraffic model_traffic(const ModelSpec& model, Stage stage, const std::vector<TokenRun>& runs, DType cache,
                           const ParallelConfig& config, int64_t ranks_per_host) {
  const int64_t tokens = std::transform_reduce(runs.begin(), runs.end(), int64_t{0}, std::plus(),
                                               [](const TokenRun& run) { return run.count; });
  std::vector<int64_t> own_tokens;
  if (config.sequence_parallel_enabled && config.tp_degree > 1) own_tokens = own_tokens_of(stage, runs, config);
  ModelTraffic traffic;
  for (const auto& [layer, count] : model.equal_layers()) {
    // Caches are those of Model::make_caches.
    const LayerCall call{.attention = layer->attention, .runs = runs, .cache = cache, .page_size = kDefaultPageSize};
    add(traffic.attention,
        stage == Stage::prefill ? prefill_traffic(call, config, ranks_per_host)
                                : decode_traffic(call, config, ranks_per_host),
        count);
    add(traffic.rest, mlp_traffic(layer->mlp, model.hidden_size, tokens, own_tokens, config, ranks_per_host), count);
  }
  add(traffic.attention, agreement_of(model, config, ranks_per_host), 1);
  if (!own_tokens.empty()) add(traffic.rest, gathered_rows_traffic(model.hidden_size, own_tokens, ranks_per_host), 1);
  return traffic;
}

}  // namespace regard
