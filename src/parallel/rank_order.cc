#include "parallel/rank_order.h"

#include <algorithm>
#include <numeric>

#include "tensor/fail.h"

namespace regard {
namespace {

using Ranks = std::vector<int64_t>;

// Sizes are ints where MPI sees them; nobody comes near.
constexpr int64_t kMostRanks = int64_t{1} << 20;

Ranks counted(int64_t count) {
  Ranks ranks(static_cast<size_t>(count));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

// Blocks of 16 ranks hold two rows each: the first four and the last four ranks, and the eight between [PAR-3].
Ranks eight_by_eight() {
  Ranks ranks;
  for (int64_t block = 0; block < 64; block += 16) {
    for (const int64_t place : {0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11}) ranks.push_back(block + place);
  }
  return ranks;
}

Ranks inverse_of(const Ranks& ranks) {
  Ranks inverse(ranks.size());
  for (size_t place = 0; place < ranks.size(); ++place)
    inverse[static_cast<size_t>(ranks[place])] = static_cast<int64_t>(place);
  return inverse;
}

// KV heads cut for `shards` ranks: whole copies of single heads, or runs of heads.
class HeadCut {
 public:
  HeadCut(int64_t kv_heads, int64_t shards) : copies_(std::max<int64_t>(1, shards / kv_heads)) {
    require(kv_heads * copies_ % shards == 0,
            "rank_orders: {} KV heads can't be cut for {} ranks; one has to be a multiple of the other", kv_heads,
            shards);
    per_shard_ = kv_heads * copies_ / shards;
  }

  // The heads first..first + per_shard - 1 of a shard; any copy of the cut may name it.
  [[nodiscard]] int64_t first_head(int64_t shard) const { return shard * per_shard_ / copies_; }
  [[nodiscard]] int64_t per_shard() const { return per_shard_; }

 private:
  int64_t copies_;
  int64_t per_shard_ = 0;
};

// The shard of `ranks` decode shards that each rank takes, so that its head is one of those that it holds in prefill,
// where `rows` rows hold all heads each [PAR-13]. `loaded` says which prefill shard a rank has.
Ranks shards_near(int64_t ranks, int64_t rows, int64_t kv_heads, std::span<const int64_t> loaded) {
  require(ranks >= kv_heads && ranks % kv_heads == 0,
          "rank_orders: {} KV heads can't be spread over {} ranks in decode, expected a divisor of {}", kv_heads, ranks,
          ranks);
  const int64_t row_size = ranks / rows;
  const int64_t copies = ranks / kv_heads;
  const HeadCut cut(kv_heads, row_size);
  Ranks taken(static_cast<size_t>(kv_heads));  // shards of each head
  Ranks order;
  for (const int64_t shard : loaded) {
    const int64_t first = cut.first_head(shard % row_size);
    int64_t head = first;
    while (head < first + cut.per_shard() && taken[static_cast<size_t>(head)] == copies) ++head;
    require(head < first + cut.per_shard(),
            "rank_orders: {} KV heads over {} ranks in {} rows leave a rank without one", kv_heads, ranks, rows);
    order.push_back(head * copies + taken[static_cast<size_t>(head)]++);
  }
  return order;
}

// Decode in `dp` rows after prefill in `cp` others: one row's order, repeated row by row [PAR-15].
Ranks row_orders(const RankMesh& prefill, const RankMesh& decode, int64_t kv_heads) {
  const int64_t row_size = decode.columns();
  const Ranks row = shards_near(row_size, prefill.rows() / decode.rows(), kv_heads,
                                prefill.inverse().first(static_cast<size_t>(row_size)));
  Ranks order;
  for (const int64_t place : decode.inverse())
    order.push_back(row[static_cast<size_t>(place % row_size)] + place / row_size * row_size);
  return order;
}

// Where the head that a rank has in decode stands among those that it has in prefill [PAR-14].
Ranks head_indices(const RankOrders& orders, const HeadCut& prefill, int64_t prefill_row, const HeadCut& decode,
                   int64_t decode_row) {
  Ranks indices;
  for (size_t rank = 0; rank < orders.decode.size(); ++rank) {
    const int64_t index =
        decode.first_head(orders.decode[rank] % decode_row) - prefill.first_head(orders.prefill[rank] % prefill_row);
    require(index >= 0 && index < prefill.per_shard(), "rank_orders: rank {} decodes with a KV head that it lacks",
            rank);
    indices.push_back(index);
  }
  return indices;
}

}  // namespace

RankMesh::RankMesh(int64_t tp, int64_t degree, bool switch_cc) : rows_(degree) {
  require(tp >= 1 && tp <= kMostRanks, "rank mesh: tp_degree is {}, expected 1 to {}", tp, kMostRanks);
  require(degree >= 1 && tp % degree == 0, "rank mesh: degree is {}, expected a divisor of tp_degree {}", degree, tp);
  ranks_ = tp == 64 && degree == 8 && !switch_cc ? eight_by_eight() : counted(tp);
  inverse_ = inverse_of(ranks_);
}

RankOrders rank_orders(int64_t tp, int64_t cp, int64_t dp, int64_t kv_heads, bool switch_cc) {
  const RankMesh prefill(tp, cp, switch_cc);
  const RankMesh decode(tp, dp, switch_cc);
  require(kv_heads >= 1, "rank_orders: num_key_value_heads is {}, expected 1 or more", kv_heads);
  RankOrders orders{.prefill = {prefill.inverse().begin(), prefill.inverse().end()},
                    .decode = {prefill.inverse().begin(), prefill.inverse().end()},
                    .head_index = Ranks(static_cast<size_t>(tp))};
  if (cp == dp) return orders;  // what a rank computes in prefill is what it reads in decode
  require(
      cp == 1 || cp % dp == 0,
      "rank_orders: attention_dp_degree is {} and cp_degree {}, expected that the second is a multiple of the first",
      dp, cp);
  if (cp == 1) {
    require(decode.columns() >= kv_heads,
            "rank_orders: {} KV heads over {} ranks in decode are several a rank, but one a rank in prefill", kv_heads,
            decode.columns());
    // Decode keeps the plain order, and prefill follows it.
    orders.decode = counted(tp);
    orders.prefill = shards_near(tp, dp, kv_heads, orders.decode);
  } else {
    orders.decode = row_orders(prefill, decode, kv_heads);
  }
  orders.head_index = head_indices(orders, {kv_heads, prefill.columns()}, prefill.columns(),
                                   {kv_heads, decode.columns()}, decode.columns());
  return orders;
}

}  // namespace regard
