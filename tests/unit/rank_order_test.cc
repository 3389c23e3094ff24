#include "parallel/rank_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>
#include <string>

#include "regard/error.h"
#include "support/expect_error.h"

namespace regard {
namespace {

using Numbers = std::vector<int64_t>;
using ::testing::ElementsAreArray;

Numbers identity(int64_t count) {
  Numbers numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

bool is_permutation(std::span<const int64_t> numbers) {
  Numbers sorted(numbers.begin(), numbers.end());
  std::ranges::sort(sorted);
  return sorted == identity(static_cast<int64_t>(sorted.size()));
}

Numbers row(const RankMesh& mesh, int64_t index) {
  Numbers ranks;
  for (int64_t column = 0; column < mesh.columns(); ++column) ranks.push_back(mesh.rank_at(index, column));
  return ranks;
}

Numbers column(const RankMesh& mesh, int64_t index) {
  Numbers ranks;
  for (int64_t r = 0; r < mesh.rows(); ++r) ranks.push_back(mesh.rank_at(r, index));
  return ranks;
}

// The KV heads of one of `shards` equal parts, by the plain rule: write each head as often as it has copies, and cut.
Numbers heads_of(int64_t shard, int64_t shards, int64_t kv_heads) {
  Numbers list;
  for (int64_t head = 0; head < kv_heads; ++head)
    for (int64_t copy = 0; copy < std::max<int64_t>(1, shards / kv_heads); ++copy) list.push_back(head);
  const auto size = static_cast<int64_t>(list.size()) / shards;
  const auto first = list.begin() + shard % shards * size;
  return {first, first + size};
}

struct Degrees {
  int64_t tp, cp, dp, kv_heads;
  bool switch_cc = false;
};

RankOrders orders_of(const Degrees& d) { return rank_orders(d.tp, d.cp, d.dp, d.kv_heads, d.switch_cc); }

Numbers prefill_heads(const Degrees& d, size_t rank) {
  return heads_of(orders_of(d).prefill[rank], d.tp / d.cp, d.kv_heads);
}

Numbers decode_heads(const Degrees& d) {
  Numbers heads;
  for (const int64_t shard : orders_of(d).decode) heads.push_back(heads_of(shard, d.tp / d.dp, d.kv_heads).at(0));
  return heads;
}

// `period` numbers, then the same plus their count, and so on: what the longer examples of [PAR-18] look like.
Numbers continued(const Numbers& period, int64_t count) {
  Numbers all;
  for (int64_t i = 0; i < count; ++i) {
    const auto size = static_cast<int64_t>(period.size());
    all.push_back(period[static_cast<size_t>(i % size)] + i / size * size);
  }
  return all;
}

Numbers repeated(const Numbers& period, int64_t count) {
  Numbers all;
  for (int64_t i = 0; i < count; ++i) all.push_back(period[static_cast<size_t>(i) % period.size()]);
  return all;
}

TEST(RankMesh, RowsAreConsecutiveRanks) {  // [PAR-1], [PAR-2]
  const RankMesh four(8, 4);
  EXPECT_EQ(four.rows(), 4);
  EXPECT_EQ(four.columns(), 2);
  EXPECT_EQ(row(four, 0), (Numbers{0, 1}));
  EXPECT_EQ(row(four, 1), (Numbers{2, 3}));
  EXPECT_EQ(row(four, 2), (Numbers{4, 5}));
  EXPECT_EQ(row(four, 3), (Numbers{6, 7}));
  EXPECT_EQ(column(four, 0), (Numbers{0, 2, 4, 6}));
  EXPECT_EQ(column(four, 1), (Numbers{1, 3, 5, 7}));
  const RankMesh two(8, 2);
  EXPECT_EQ(row(two, 0), (Numbers{0, 1, 2, 3}));
  EXPECT_EQ(row(two, 1), (Numbers{4, 5, 6, 7}));
  EXPECT_EQ(column(two, 0), (Numbers{0, 4}));
  EXPECT_EQ(column(two, 1), (Numbers{1, 5}));
  EXPECT_EQ(column(two, 2), (Numbers{2, 6}));
  EXPECT_EQ(column(two, 3), (Numbers{3, 7}));
}

TEST(RankMesh, EightRowsOfSixtyFourRanksAreInterleaved) {  // [PAR-3]
  const RankMesh mesh(64, 8);
  for (int64_t block = 0; block < 4; ++block) {
    const int64_t o = 16 * block;
    EXPECT_EQ(row(mesh, 2 * block), (Numbers{o, o + 1, o + 2, o + 3, o + 12, o + 13, o + 14, o + 15}));
    EXPECT_EQ(row(mesh, 2 * block + 1), (Numbers{o + 4, o + 5, o + 6, o + 7, o + 8, o + 9, o + 10, o + 11}));
  }
  EXPECT_EQ(column(mesh, 0), (Numbers{0, 4, 16, 20, 32, 36, 48, 52}));
}

TEST(RankMesh, SwitchCcMakesThemConsecutive) {  // [PAR-4]
  const RankMesh mesh(64, 8, true);
  for (int64_t r = 0; r < 8; ++r)
    EXPECT_EQ(row(mesh, r),
              (Numbers{8 * r, 8 * r + 1, 8 * r + 2, 8 * r + 3, 8 * r + 4, 8 * r + 5, 8 * r + 6, 8 * r + 7}));
}

TEST(RankMesh, ARankStandsInTheRowAndColumnThatHoldIt) {  // [PAR-5]
  const RankMesh mesh(64, 8);
  EXPECT_EQ(mesh.row_of(12), 0);
  EXPECT_EQ(mesh.column_of(12), 4);
  EXPECT_EQ(mesh.row_of(4), 1);
  EXPECT_EQ(mesh.column_of(4), 0);  // the reference takes 4 mod 8
  EXPECT_EQ(RankMesh(8, 2).row_of(5), 1);
  EXPECT_EQ(RankMesh(8, 2).column_of(5), 1);
}

TEST(RankMesh, TheInverseSaysWhereARankStands) {  // [PAR-8]
  const RankMesh mesh(64, 8);
  EXPECT_THAT(mesh.inverse(), ElementsAreArray(continued({0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5, 6, 7}, 64)));
  EXPECT_THAT(RankMesh(64, 4).inverse(), ElementsAreArray(identity(64)));
  EXPECT_THAT(RankMesh(64, 8, true).inverse(), ElementsAreArray(identity(64)));
}

TEST(RankMesh, IsAPermutationOfTheRanks) {
  for (int64_t tp = 1; tp <= 64; ++tp)
    for (int64_t degree = 1; degree <= tp; ++degree)
      for (const bool switch_cc : {false, true}) {
        if (tp % degree != 0) continue;
        const RankMesh mesh(tp, degree, switch_cc);
        ASSERT_TRUE(is_permutation(mesh.flat())) << tp << " in " << degree;
        for (int64_t rank = 0; rank < tp; ++rank)
          ASSERT_EQ(mesh.rank_at(mesh.row_of(rank), mesh.column_of(rank)), rank) << tp << " in " << degree;
      }
}

TEST(RankMesh, DegreesThatDoNotDivideAreRefused) {
  EXPECT_ERROR(RankMesh(8, 3), "degree is 3, expected a divisor of tp_degree 8");
  EXPECT_ERROR(RankMesh(8, 0), "degree is 0");
  EXPECT_ERROR(RankMesh(8, 16), "degree is 16");
  EXPECT_ERROR(RankMesh(8, -2), "degree is -2");
  EXPECT_ERROR(RankMesh(0, 1), "tp_degree is 0");
  EXPECT_ERROR(RankMesh(int64_t{1} << 40, 1), "tp_degree is 1099511627776");
}

TEST(RankOrders, EightRanksPrefillInRowsAndDecodeTogether) {  // [PAR-13], [PAR-14], [PAR-17]
  struct Case {
    Degrees degrees;
    Numbers decode, decode_heads, head_index;
    std::vector<Numbers> prefill_heads;  // of a row
  };
  const std::vector<Case> cases = {
      {{8, 2, 1, 2},
       {0, 1, 4, 5, 2, 3, 6, 7},
       {0, 0, 1, 1, 0, 0, 1, 1},
       {0, 0, 0, 0, 0, 0, 0, 0},
       {{0}, {0}, {1}, {1}}},
      {{8, 2, 1, 4},
       {0, 2, 4, 6, 1, 3, 5, 7},
       {0, 1, 2, 3, 0, 1, 2, 3},
       {0, 0, 0, 0, 0, 0, 0, 0},
       {{0}, {1}, {2}, {3}}},
      {{8, 2, 1, 8},
       {0, 2, 4, 6, 1, 3, 5, 7},
       {0, 2, 4, 6, 1, 3, 5, 7},
       {0, 0, 0, 0, 1, 1, 1, 1},
       {{0, 1}, {2, 3}, {4, 5}, {6, 7}}},
      {{8, 4, 1, 2}, {0, 4, 1, 5, 2, 6, 3, 7}, {0, 1, 0, 1, 0, 1, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 0}, {{0}, {1}}},
      {{8, 4, 1, 8},
       {0, 4, 1, 5, 2, 6, 3, 7},
       {0, 4, 1, 5, 2, 6, 3, 7},
       {0, 0, 1, 1, 2, 2, 3, 3},
       {{0, 1, 2, 3}, {4, 5, 6, 7}}},
      {{8, 4, 2, 4}, {0, 2, 1, 3, 4, 6, 5, 7}, {0, 2, 1, 3, 0, 2, 1, 3}, {0, 0, 1, 1, 0, 0, 1, 1}, {{0, 1}, {2, 3}}},
      {{8, 8, 2, 4}, identity(8), {0, 1, 2, 3, 0, 1, 2, 3}, {0, 1, 2, 3, 0, 1, 2, 3}, {{0, 1, 2, 3}}},
      {{8, 8, 4, 2}, identity(8), {0, 1, 0, 1, 0, 1, 0, 1}, {0, 1, 0, 1, 0, 1, 0, 1}, {{0, 1}}},
  };
  for (const Case& c : cases) {
    const Degrees& d = c.degrees;
    SCOPED_TRACE("cp " + std::to_string(d.cp) + " dp " + std::to_string(d.dp) + " heads " + std::to_string(d.kv_heads));
    const RankOrders orders = orders_of(d);
    EXPECT_EQ(orders.prefill, identity(8));
    EXPECT_EQ(orders.decode, c.decode);
    EXPECT_EQ(orders.head_index, c.head_index);
    EXPECT_EQ(decode_heads(d), c.decode_heads);
    for (size_t rank = 0; rank < 8; ++rank)
      EXPECT_EQ(prefill_heads(d, rank), c.prefill_heads[rank % c.prefill_heads.size()]) << "rank " << rank;
  }
}

TEST(RankOrders, WithoutRowsInPrefillItIsPrefillThatFollows) {  // [PAR-16], [PAR-17]
  const RankOrders two = orders_of({8, 1, 2, 2});
  EXPECT_EQ(two.prefill, (Numbers{0, 1, 4, 5, 2, 3, 6, 7}));
  EXPECT_EQ(two.decode, identity(8));
  EXPECT_EQ(two.head_index, Numbers(8));
  const RankOrders four = orders_of({8, 1, 4, 2});
  EXPECT_EQ(four.prefill, (Numbers{0, 4, 1, 5, 2, 6, 3, 7}));
  EXPECT_EQ(four.decode, identity(8));
  EXPECT_ERROR(orders_of({8, 1, 4, 8}), "8 KV heads over 2 ranks in decode");
}

TEST(RankOrders, SixtyFourRanks) {  // [PAR-15], [PAR-18]
  const RankOrders together = orders_of({64, 8, 1, 8});
  EXPECT_EQ(together.prefill, continued({0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5, 6, 7}, 64));
  EXPECT_EQ(Numbers(together.decode.begin(), together.decode.begin() + 24),
            (Numbers{0, 8, 16, 24, 1, 9, 17, 25, 32, 40, 48, 56, 33, 41, 49, 57, 2, 10, 18, 26, 3, 11, 19, 27}));
  const RankOrders sixteen = orders_of({64, 16, 4, 8});
  EXPECT_EQ(sixteen.decode, continued({0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15}, 64));
  EXPECT_EQ(sixteen.head_index, repeated({0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}, 64));
  EXPECT_EQ(orders_of({64, 8, 4, 8, true}).decode,
            continued({0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15}, 64));
  EXPECT_EQ(orders_of({64, 8, 4, 8}).decode, continued({0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15}, 64));
  EXPECT_EQ(orders_of({64, 16, 8, 8}).decode, continued({0, 2, 4, 6, 8, 10, 12, 14, 9, 11, 13, 15, 1, 3, 5, 7}, 64));
  EXPECT_ERROR(orders_of({64, 4, 16, 8}), "attention_dp_degree is 16 and cp_degree 4");
}

TEST(RankOrders, EqualDegreesNeedNoOrder) {  // [PAR-16]
  for (const int64_t kv_heads : {1, 3, 5, 8, 128}) {
    const RankOrders plain = orders_of({8, 4, 4, kv_heads});
    EXPECT_EQ(plain.prefill, identity(8));
    EXPECT_EQ(plain.decode, identity(8));
    EXPECT_EQ(plain.head_index, Numbers(8));
    EXPECT_THAT(orders_of({64, 8, 8, kv_heads}).decode, ElementsAreArray(RankMesh(64, 8).inverse()));
  }
}

TEST(RankOrders, WhatCannotBeOrderedIsRefused) {  // [GAP-56]
  EXPECT_ERROR(orders_of({8, 2, 1, 0}), "num_key_value_heads is 0");
  EXPECT_ERROR(orders_of({8, 2, 1, 16}), "16 KV heads can't be spread over 8 ranks");
  EXPECT_ERROR(orders_of({8, 2, 1, 3}), "3 KV heads can't be spread over 8 ranks");
  EXPECT_ERROR(orders_of({24, 3, 1, 12}), "12 KV heads can't be cut for 8 ranks");
  EXPECT_ERROR(orders_of({8, 4, 2, 8}), "8 KV heads can't be spread over 4 ranks");
  EXPECT_ERROR(orders_of({8, 2, 4, 2}), "attention_dp_degree is 4 and cp_degree 2");
  EXPECT_ERROR(orders_of({24, 6, 4, 1}), "attention_dp_degree is 4 and cp_degree 6");
  EXPECT_ERROR(orders_of({8, 3, 1, 2}), "degree is 3");
  EXPECT_ERROR(orders_of({8, 1, 3, 2}), "degree is 3");
}

template <class Check>
void for_all_orders(const Check& check) {
  for (int64_t tp = 1; tp <= 64; ++tp)
    for (int64_t cp = 1; cp <= tp; ++cp)
      for (int64_t dp = 1; dp <= tp; ++dp)
        for (const int64_t kv_heads : {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 128})
          for (const bool switch_cc : {false, true}) {
            if (tp % cp != 0 || tp % dp != 0 || (switch_cc && tp != 64)) continue;
            const Degrees degrees{tp, cp, dp, kv_heads, switch_cc};
            SCOPED_TRACE(testing::Message() << "tp " << tp << " cp " << cp << " dp " << dp << " kv_heads " << kv_heads
                                            << " switch_cc " << switch_cc);
            check(degrees);
            if (testing::Test::HasFatalFailure()) return;
          }
}

// Nothing where the order does not exist.
std::optional<RankOrders> orders_if_any(const Degrees& degrees) {
  try {
    return orders_of(degrees);
  } catch (const Error&) {
    return std::nullopt;
  }
}

// The rows of a stage hold a whole copy of the weights each, every shard once.
void expect_whole_rows(const RankMesh& mesh, const Numbers& order) {
  for (int64_t r = 0; r < mesh.rows(); ++r) {
    Numbers shards;
    for (const int64_t rank : row(mesh, r)) shards.push_back(order[static_cast<size_t>(rank)] % mesh.columns());
    ASSERT_TRUE(is_permutation(shards)) << "row " << r;
  }
}

TEST(RankOrders, EveryRowOfAStageHasEveryShard) {  // [PAR-12]
  for_all_orders([](const Degrees& d) {
    const auto orders = orders_if_any(d);
    if (!orders) return;
    ASSERT_TRUE(is_permutation(orders->prefill));
    ASSERT_TRUE(is_permutation(orders->decode));
    expect_whole_rows(RankMesh(d.tp, d.cp, d.switch_cc), orders->prefill);
    expect_whole_rows(RankMesh(d.tp, d.dp, d.switch_cc), orders->decode);
  });
}

// The point of it all. For the 8x8 mesh and more than 8 KV heads the reference looks the index up in the wrong list
// and stores other heads than it reads [GAP-55]; here it holds for all.
TEST(RankOrders, TheHeadThatARankDecodesIsOneItComputedInPrefill) {  // [PAR-14], [GAP-55]
  int found = 0;
  for_all_orders([&](const Degrees& d) {
    const auto orders = orders_if_any(d);
    // Equal degrees keep all heads of a rank, however they are padded.
    if (!orders || d.cp == d.dp) return;
    ++found;
    for (size_t rank = 0; rank < static_cast<size_t>(d.tp); ++rank) {
      const Numbers computed = heads_of(orders->prefill[rank], d.tp / d.cp, d.kv_heads);
      const Numbers read = heads_of(orders->decode[rank], d.tp / d.dp, d.kv_heads);
      ASSERT_EQ(read.size(), 1U);
      ASSERT_LT(orders->head_index[rank], static_cast<int64_t>(computed.size())) << "rank " << rank;
      ASSERT_EQ(computed[static_cast<size_t>(orders->head_index[rank])], read[0]) << "rank " << rank;
    }
  });
  EXPECT_GT(found, 1000);
}

// The rules of [PAR-13], [PAR-15] and [PAR-16] step by step, errors as nothing.
std::optional<Numbers> plain_map(int64_t ranks, int64_t rows, int64_t kv_heads, const Numbers& places) {
  if (rows < 1 || ranks < kv_heads) return std::nullopt;
  const int64_t row_size = ranks / rows;
  if (kv_heads * std::max<int64_t>(1, row_size / kv_heads) % row_size != 0) return std::nullopt;
  std::set<int64_t> unused;
  for (int64_t shard = 0; shard < ranks; ++shard) unused.insert(shard);
  Numbers order;
  for (const int64_t place : places) {
    const Numbers heads = heads_of(place, row_size, kv_heads);
    const auto fits = std::ranges::find_if(
        unused, [&](int64_t shard) { return std::ranges::count(heads, shard / (ranks / kv_heads)) > 0; });
    if (fits == unused.end()) return std::nullopt;
    order.push_back(*fits);
    unused.erase(fits);
  }
  return order;
}

std::optional<Numbers> plain_decode_order(const Degrees& d) {
  const int64_t row_size = d.tp / d.dp;
  const RankMesh prefill(d.tp, d.cp, d.switch_cc);
  const Numbers places(prefill.inverse().begin(), prefill.inverse().begin() + row_size);
  const auto row = plain_map(row_size, d.cp / d.dp, d.kv_heads, places);
  if (!row) return std::nullopt;
  const Numbers all = continued(*row, d.tp);
  Numbers order;
  const RankMesh decode(d.tp, d.dp, d.switch_cc);
  for (const int64_t place : decode.inverse()) order.push_back(all[static_cast<size_t>(place)]);
  return order;
}

TEST(RankOrders, AreThoseOfThePlainRules) {  // [PAR-13], [PAR-15], [PAR-16]
  for_all_orders([](const Degrees& d) {
    if (d.cp == d.dp) return;
    const auto orders = orders_if_any(d);
    if (d.cp == 1) {
      const bool one_head = std::max<int64_t>(1, d.kv_heads / (d.tp / d.dp)) == std::max<int64_t>(1, d.kv_heads / d.tp);
      const auto plain = one_head ? plain_map(d.tp, d.dp, d.kv_heads, identity(d.tp)) : std::nullopt;
      ASSERT_EQ(orders.has_value(), plain.has_value());
      if (orders) {
        ASSERT_EQ(orders->prefill, *plain);
      }
    } else {
      const auto plain = d.cp % d.dp == 0 ? plain_decode_order(d) : std::nullopt;
      ASSERT_EQ(orders.has_value(), plain.has_value());
      if (orders) {
        ASSERT_EQ(orders->decode, *plain);
      }
    }
  });
}

}  // namespace
}  // namespace regard
