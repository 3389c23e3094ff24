#include "parallel/mlp_traffic.h"

#include <algorithm>

#include "layers/mlp.h"
#include "parallel/exchange_count.h"
#include "parallel/sum_tree.h"

namespace regard {
namespace {

using Groups = ExchangeCount::Groups;

constexpr auto kFloat = static_cast<int64_t>(sizeof(float));

// Of the tree of an MLP's sum, how many nodes each rank has. One that gets no columns has none.
std::vector<int64_t> nodes_of(int64_t width, const ParallelConfig& config) {
  const int64_t leaves = mlp_leaves(width);
  const SumTree tree(leaves);
  std::vector<int64_t> nodes;
  for (const ElementRange& own : even_parts(leaves, config.tp_degree))
    nodes.push_back(config.deterministic ? std::ssize(tree.cover(own.first, own.end())) : int64_t{own.count > 0});
  return nodes;
}

// The sum of one MLP: of the tokens that a rank has, or of all in even parts, piece by piece.
void add_sum(ExchangeCount& count, int64_t width, int64_t hidden_size, int64_t tokens,
             std::span<const int64_t> own_tokens, const ParallelConfig& config) {
  const Groups all = Groups::all(config.tp_degree);
  const DType wire = config.rpl_reduce_dtype.value_or(DType::f32);
  const std::vector<int64_t> nodes = nodes_of(width, config);
  const int64_t pieces = (tokens + Mlp::kPieceTokens - 1) / Mlp::kPieceTokens;
  if (!own_tokens.empty()) {
    const auto own = [&](int64_t rank) { return own_tokens[static_cast<size_t>(rank)] * hidden_size; };
    count.scatter_sums(all, pieces, own, nodes, wire);
    return;
  }
  const auto own = [&](int64_t rank) {
    const auto of_piece = [&](int64_t size) { return part_of(size * hidden_size, config.tp_degree, rank).count; };
    return tokens / Mlp::kPieceTokens * of_piece(Mlp::kPieceTokens) + of_piece(tokens % Mlp::kPieceTokens);
  };
  count.all_reduce(all, pieces, own, nodes, wire, DType::f32);
}

void add_gathered_rows(ExchangeCount& count, int64_t hidden_size, std::span<const int64_t> own_tokens) {
  count.gather(Groups::all(count.ranks()), 1, &RankTraffic::entry,
               [&](int64_t rank) { return own_tokens[static_cast<size_t>(rank)] * hidden_size * kFloat; });
}

}  // namespace

LayerTraffic mlp_traffic(const std::variant<DenseMlp, ExpertsMlp>& mlp, int64_t hidden_size, int64_t tokens,
                         std::span<const int64_t> own_tokens, const ParallelConfig& config, int64_t ranks_per_host) {
  ExchangeCount count(config.tp_degree, ranks_per_host);
  if (!own_tokens.empty()) add_gathered_rows(count, hidden_size, own_tokens);
  const auto add = [&](const DenseMlp& part) { add_sum(count, part.width, hidden_size, tokens, own_tokens, config); };
  if (const auto* dense = std::get_if<DenseMlp>(&mlp)) {
    add(*dense);
  } else {
    const auto& experts = std::get<ExpertsMlp>(mlp);
    add(experts.expert);
    if (experts.shared) add(*experts.shared);
  }
  return std::move(count).traffic();
}

LayerTraffic gathered_rows_traffic(int64_t hidden_size, std::span<const int64_t> own_tokens, int64_t ranks_per_host) {
  ExchangeCount count(std::ssize(own_tokens), ranks_per_host);
  add_gathered_rows(count, hidden_size, own_tokens);
  return std::move(count).traffic();
}

}  // namespace regard
