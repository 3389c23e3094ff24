#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "parallel/even_parts.h"
#include "parallel/row_heads.h"
#include "parallel/traffic.h"

namespace regard {

inline int64_t bytes_of(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }

inline int64_t part_size(int64_t count, int64_t parts, int64_t index) { return part_of(count, parts, index).count; }

inline int64_t pieces_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The pieces in which a row's tokens go through a layer: lengths of `tokens`, each so many times in a row.
class Pieces {
 public:
  Pieces() = default;
  // All of `size` tokens, but for the last one.
  Pieces(int64_t tokens, int64_t size) {
    add(size, tokens / size);
    add(tokens % size, 1);
  }
  void add(int64_t tokens, int64_t times) {
    if (tokens == 0 || times == 0) return;
    if (!alike_.empty() && alike_.back().tokens == tokens)
      alike_.back().times += times;
    else
      alike_.push_back({tokens, times});
  }

  [[nodiscard]] int64_t count() const {
    return std::accumulate(alike_.begin(), alike_.end(), int64_t{0},
                           [](int64_t sum, const Alike& some) { return sum + some.times; });
  }
  // The sum of of_piece(tokens) over all.
  template <class OfPiece>
  [[nodiscard]] int64_t sum(OfPiece of_piece) const {
    return std::accumulate(alike_.begin(), alike_.end(), int64_t{0},
                           [&](int64_t sum, const Alike& some) { return sum + some.times * of_piece(some.tokens); });
  }
  template <class Visit>
  void for_each(Visit visit) const {
    for (const Alike& some : alike_)
      for (int64_t i = 0; i < some.times; ++i) visit(some.tokens);
  }

 private:
  struct Alike {
    int64_t tokens;
    int64_t times;
  };
  std::vector<Alike> alike_;
};

// One stage of one call while its traffic is added up: rounds, and the ways of hidden states. The stage has d rows of T
// ranks. An exchange is one round in which a rank sends to all others of its group.
class TrafficStage {
 public:
  TrafficStage(const LayerCall& call, const ParallelConfig& config, const RankMesh& mesh, const RowHeads& heads)
      : call_(call),
        mesh_(mesh),
        heads_(heads),
        sum_bytes_(bytes_of(config.rpl_reduce_dtype.value_or(DType::f32))),
        row_tokens_(static_cast<size_t>(mesh.rows())),
        row_pieces_(row_tokens_.size()) {
    const SumTree tree = heads.sum_tree(config.deterministic);
    for (const ElementRange& leaves : heads.sum_leaves(config.deterministic))
      sums_of_column_.push_back(std::ssize(tree.cover(leaves.first, leaves.end())));
    traffic_.ranks.resize(static_cast<size_t>(config.tp_degree));
  }

  [[nodiscard]] const RankMesh& mesh() const { return mesh_; }
  [[nodiscard]] int64_t rows() const { return mesh_.rows(); }
  [[nodiscard]] int64_t columns() const { return mesh_.columns(); }
  [[nodiscard]] const RowHeads& heads() const { return heads_; }
  // Says which tokens a row has.
  void set_pieces(int64_t row, Pieces pieces) {
    row_tokens_[static_cast<size_t>(row)] = pieces.sum([](int64_t tokens) { return tokens; });
    row_pieces_[static_cast<size_t>(row)] = std::move(pieces);
  }
  [[nodiscard]] int64_t row_tokens(int64_t row) const { return row_tokens_[static_cast<size_t>(row)]; }
  [[nodiscard]] const Pieces& pieces_of_row(int64_t row) const { return row_pieces_[static_cast<size_t>(row)]; }
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
    int64_t most = 1;
    for (const Pieces& pieces : row_pieces_) most = std::max(most, pieces.count());
    return most;
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
  template <class PiecesOf>
  void all_reduce(const PiecesOf& pieces_of, int64_t rounds) {
    const int64_t width = call_.shape.hidden_size;
    const auto own = [&](int64_t row, int64_t column) {
      return pieces_of(row).sum([&](int64_t tokens) { return part_size(tokens * width, columns(), column); });
    };
    const auto all = [&](int64_t row) { return pieces_of(row).sum([&](int64_t tokens) { return tokens * width; }); };
    exchange(columns(), rounds, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.sums += (all(row) - own(row, column)) * sums_of(column) * sum_bytes_;
    });
    exchange(columns(), rounds, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.output += own(row, column) * bytes_of(call_.hidden) * (columns() - 1);
    });
  }

  // Each rank sends its row's tokens to the d - 1 others of its column.
  void sum_then_gather_rows() {
    all_reduce([&](int64_t row) -> const Pieces& { return pieces_of_row(row); }, pieces());
    exchange(rows(), 1, [&](int64_t row, int64_t, RankTraffic& rank) {
      rank.output += row_tokens(row) * row_bytes() * (rows() - 1);
    });
  }

  // The same with partial sums; then each row sums the tokens of all, in one piece.
  void gather_rows_then_sum() {
    exchange(rows(), 1, [&](int64_t row, int64_t column, RankTraffic& rank) {
      rank.output += row_tokens(row) * call_.shape.hidden_size * sums_of(column) * sum_bytes_ * (rows() - 1);
    });
    Pieces all;
    all.add(std::accumulate(row_tokens_.begin(), row_tokens_.end(), int64_t{0}), 1);
    all_reduce([&](int64_t) -> const Pieces& { return all; }, 1);
  }

 private:
  [[nodiscard]] int64_t sums_of(int64_t column) const { return sums_of_column_[static_cast<size_t>(column)]; }
  // Of a token's finished hidden state.
  [[nodiscard]] int64_t row_bytes() const { return call_.shape.hidden_size * bytes_of(call_.hidden); }

  const LayerCall& call_;
  const RankMesh& mesh_;
  const RowHeads& heads_;
  int64_t sum_bytes_;
  std::vector<int64_t> row_tokens_;
  std::vector<Pieces> row_pieces_;
  std::vector<int64_t> sums_of_column_;  // that a rank holds: the nodes of the tree that cover its heads
  LayerTraffic traffic_;
};

}  // namespace regard
