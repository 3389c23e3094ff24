#include "parallel/traffic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "parallel/rank_order.h"
#include "regard/mask.h"
#include "support/expect_error.h"

namespace regard {
namespace {

// 4 query heads, 2 KV heads, keys of 8 and values of 6 numbers.
AttentionConfig small(int64_t hidden_size = 5, const Mask& mask = {}) {
  return {.hidden_size = hidden_size,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 8,
          .v_head_dim = 6,
          .is_causal = mask.is_causal,
          .sliding_window = mask.sliding_window,
          .attention_chunk_size = mask.attention_chunk_size};
}

std::vector<int64_t> of_ranks(const LayerTraffic& traffic, int64_t RankTraffic::*part) {
  std::vector<int64_t> bytes;
  for (const RankTraffic& rank : traffic.ranks) bytes.push_back(rank.*part);
  return bytes;
}

using Bytes = std::vector<int64_t>;

TEST(Traffic, OneRankSendsNothing) {
  const LayerCall call{.attention = small(), .runs = {{0, 100}}};
  for (const LayerTraffic& traffic : {prefill_traffic(call, {}), decode_traffic(call, {})}) {
    EXPECT_EQ(traffic.ranks, std::vector<RankTraffic>(1));
    EXPECT_EQ(traffic.rounds, 0);
    EXPECT_EQ(traffic.messages, 0);
  }
}

// 3 tokens of 5 numbers are 15 numbers: parts of 3, 4, 4, 4 for four ranks.
TEST(Traffic, ASumIsPartsForOthersAndThenTheOwnPartForAll) {
  const LayerTraffic traffic = prefill_traffic({.attention = small(), .runs = {{0, 3}}}, {.tp_degree = 4});
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::sums), (Bytes{12 * 4, 11 * 4, 11 * 4, 11 * 4}));
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::output), (Bytes{3 * 4 * 3, 4 * 4 * 3, 4 * 4 * 3, 4 * 4 * 3}));
  EXPECT_EQ(traffic.total(), 2 * 15 * 3 * 4);
  EXPECT_EQ(traffic.most_of_a_rank(), 92);
  EXPECT_EQ(traffic.rounds, 2);
  EXPECT_EQ(traffic.messages, 6);
  EXPECT_EQ(decode_traffic({.attention = small(), .runs = {{7, 1}, {9, 1}, {2, 1}}}, {.tp_degree = 4}).ranks,
            traffic.ranks);
}

TEST(Traffic, PartialSumsTravelInTheTypeThatIsAskedForAndResultsInThatOfHiddenStates) {
  const auto parts = [](DType hidden, std::optional<DType> sums) {
    const LayerTraffic traffic = prefill_traffic({.attention = small(), .runs = {{0, 3}}, .hidden = hidden},
                                                 {.tp_degree = 4, .rpl_reduce_dtype = sums});
    const auto total = [](const Bytes& bytes) { return std::accumulate(bytes.begin(), bytes.end(), int64_t{0}); };
    return Bytes{total(of_ranks(traffic, &RankTraffic::sums)), total(of_ranks(traffic, &RankTraffic::output))};
  };
  EXPECT_EQ(parts(DType::f32, std::nullopt), (Bytes{15 * 3 * 4, 15 * 3 * 4}));
  EXPECT_EQ(parts(DType::f32, DType::bf16), (Bytes{15 * 3 * 2, 15 * 3 * 4}));
  EXPECT_EQ(parts(DType::bf16, std::nullopt), (Bytes{15 * 3 * 4, 15 * 3 * 2}));
}

// 5 heads on 3 ranks: 0 and 1, 2 and 3, 4. The tree's halves are 0 to 2 and 3 to 4, so that rank 1 holds two nodes.
TEST(Traffic, DeterministicSumsSendEveryNode) {
  AttentionConfig shape = small();
  shape.num_attention_heads = shape.num_key_value_heads = 5;
  const LayerTraffic traffic =
      prefill_traffic({.attention = shape, .runs = {{0, 2}}}, {.tp_degree = 3, .deterministic = true});
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::sums), (Bytes{7 * 4, 2 * 7 * 4, 6 * 4}));
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::output), (Bytes{3 * 4 * 2, 3 * 4 * 2, 4 * 4 * 2}));
}

// 513 tokens of 5 numbers are a piece of 2560 numbers and one of 5: parts of 853, 853, 854 and of 1, 2, 2.
TEST(Traffic, SumsOfManyTokensAreCutPieceByPiece) {
  const LayerTraffic traffic = prefill_traffic({.attention = small(), .runs = {{0, 513}}}, {.tp_degree = 3});
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::output), (Bytes{854 * 4 * 2, 855 * 4 * 2, 856 * 4 * 2}));
  EXPECT_EQ(traffic.rounds, 4);
  const LayerCall whole{.attention = small(5, {.is_causal = false}), .runs = {{0, 513}}};
  EXPECT_EQ(of_ranks(prefill_traffic(whole, {.tp_degree = 3}), &RankTraffic::output), Bytes(3, 855 * 4 * 2));
}

// 4 query heads on 4 ranks, 2 KV heads with two copies: a sum of squares each, and for a layer norm a mean before it.
TEST(Traffic, NormsOverAllHeadsSendASumForEachHead) {
  AttentionConfig shape = small();
  shape.q_layernorm = {.kind = NormKind::rms, .width = NormWidth::all};
  shape.k_layernorm = {.kind = NormKind::layer_norm, .width = NormWidth::all};
  const LayerTraffic traffic = prefill_traffic({.attention = shape, .runs = {{0, 3}}}, {.tp_degree = 4});
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::norms), Bytes(4, 3 * (1 + 2) * 8 * 3));
  EXPECT_EQ(traffic.rounds, 3 + 2);
}

// 3 tokens: ranks have 0, 1, 1, 1 of them.
TEST(Traffic, SequenceParallelGathersTokensAndKeepsItsOwnSums) {
  const LayerTraffic traffic = prefill_traffic({.attention = small(), .runs = {{0, 3}}, .hidden = DType::bf16},
                                               {.tp_degree = 4, .sequence_parallel_enabled = true});
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::entry), (Bytes{0, 5 * 2 * 3, 5 * 2 * 3, 5 * 2 * 3}));
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::sums), (Bytes{15 * 4, 10 * 4, 10 * 4, 10 * 4}));
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::output), Bytes(4));
  EXPECT_EQ(traffic.rounds, 2);
}

// Two rows of two ranks; 5 tokens: the rows have 2 and 3. Each rank has one KV head.
TEST(Traffic, RowsOfAPromptExchangeKeysAndValues) {
  const LayerCall call{.attention = small(4), .runs = {{0, 5}}};
  const LayerTraffic traffic = prefill_traffic(call, {.tp_degree = 4, .cp_degree = 2});
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::keys_values), (Bytes{2 * 14 * 4, 2 * 14 * 4, 3 * 14 * 4, 3 * 14 * 4}));
  // 8 and 12 numbers in two parts each.
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::sums), (Bytes{4 * 4, 4 * 4, 6 * 4, 6 * 4}));
  // The part for the row, then the row's tokens for the column.
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::output), (Bytes{16 + 8 * 4, 16 + 8 * 4, 24 + 12 * 4, 24 + 12 * 4}));
  EXPECT_EQ(traffic.rounds, 4);
  EXPECT_EQ(traffic.messages, 4);
  const LayerTraffic with_sp =
      prefill_traffic(call, {.tp_degree = 4, .cp_degree = 2, .sequence_parallel_enabled = true});
  EXPECT_EQ(of_ranks(with_sp, &RankTraffic::output), Bytes(4));
  EXPECT_EQ(with_sp.rounds, 3);
}

// Row 0 of two keeps the sequence: row 1 only needs what it sees, which is all, and row 0 what row 1 has.
TEST(Traffic, OnlyTheRowOfDecodeThatKeepsASequenceGetsMoreThanItSees) {
  const auto sent = [](TokenRun run, KeptTokens kept, ContextSplit split) {
    const LayerCall call{.attention = small(4), .runs = {run}, .kept = kept};
    const ParallelConfig config{.tp_degree = 4, .cp_degree = 2, .attention_dp_degree = 2, .context_split = split};
    return of_ranks(prefill_traffic(call, config), &RankTraffic::keys_values);
  };
  const int64_t token = 14 * 4;
  const auto contiguous = ContextSplit::contiguous;
  EXPECT_EQ(sent({0, 4, 0}, KeptTokens::all, contiguous), (Bytes{2 * token, 2 * token, 2 * token, 2 * token}));
  EXPECT_EQ(sent({0, 4, 1}, KeptTokens::all, contiguous), (Bytes{2 * token, 2 * token, 0, 0}));
  EXPECT_EQ(sent({0, 4, 0}, KeptTokens::none, contiguous), (Bytes{2 * token, 2 * token, 0, 0}));
  // The first row's last token is the third of all: it sees one of the other row's two.
  EXPECT_EQ(sent({0, 4, 1}, KeptTokens::all, ContextSplit::strided), (Bytes{2 * token, 2 * token, token, token}));
  EXPECT_EQ(sent({.first = 0, .count = 4, .row = 0, .is_skipped = true}, KeptTokens::all, contiguous), Bytes(4));
}

// Decode in two rows of two: ranks 2 and 3 keep the second row's sequences. Prefill on all ranks, a KV head each twice.
TEST(Traffic, WhatCachesKeepIsFetchedAsItIsStored) {
  const ParallelConfig config{.tp_degree = 4, .attention_dp_degree = 2};
  const auto prior = [&](TokenRun run, DType cache, const Mask& mask) {
    return of_ranks(prefill_traffic({.attention = small(4, mask), .runs = {run}, .cache = cache}, config),
                    &RankTraffic::prior);
  };
  EXPECT_EQ(prior({0, 40, 1}, DType::f32, {}), Bytes(4));
  // Each head is kept by one rank of the row and wanted by one of the other.
  EXPECT_EQ(prior({10, 40, 1}, DType::f32, {}), (Bytes{0, 0, 10 * 14 * 4, 10 * 14 * 4}));
  EXPECT_EQ(prior({10, 40, 1}, DType::i8, {}), (Bytes{0, 0, 10 * (14 + 8), 10 * (14 + 8)}));
  EXPECT_EQ(prior({10, 40, 0}, DType::bf16, {.sliding_window = 4}), (Bytes{3 * 14 * 2, 3 * 14 * 2, 0, 0}));
}

TEST(Traffic, KeysAndValuesTravelAsTheyAreCached) {
  const auto bytes = [](DType cache) {
    const LayerCall call{.attention = small(), .runs = {{0, 2}}, .cache = cache};
    return prefill_traffic(call, {.tp_degree = 2, .cp_degree = 2}).ranks[0].keys_values;
  };
  EXPECT_EQ(bytes(DType::f32), 2 * 14 * 4);
  EXPECT_EQ(bytes(DType::bf16), 2 * 14 * 2);
  EXPECT_EQ(bytes(DType::f16), 2 * 14 * 2);
  EXPECT_EQ(bytes(DType::i8), 2 * (14 + 8));
  EXPECT_EQ(bytes(DType::i4), 2 * (14 + 8));
}

// The keys that each row's queries see, plus those that the next call will: counted pair by pair.
Bytes tokens_sent_pair_by_pair(const Mask& mask, TokenRun run, int64_t rows, ContextSplit split) {
  const auto row_of = [&](int64_t token) {
    if (split == ContextSplit::strided) return token % rows;
    int64_t row = 0;
    while (run.count * (row + 1) / rows <= token) ++row;
    return row;
  };
  const int64_t end = run.first + run.count;
  Bytes sent(static_cast<size_t>(rows));
  for (int64_t token = 0; token < run.count; ++token)
    for (int64_t row = 0; row < rows; ++row) {
      if (row == row_of(token)) continue;
      const int64_t key = run.first + token;
      bool needed = mask.visible(end, end + 1).contains(key);
      for (int64_t query = 0; query < run.count; ++query)
        needed |= row_of(query) == row && mask.visible(run.first + query, end, run.first + run.prefix).contains(key);
      if (needed) ++sent[static_cast<size_t>(row_of(token))];
    }
  return sent;
}

TEST(Traffic, UnderWindowsAndChunksOnlyRowsThatSeeAKeyGetIt) {
  const std::vector<Mask> masks = {{},
                                   {.is_causal = false},
                                   {.sliding_window = 1},
                                   {.sliding_window = 3},
                                   {.sliding_window = 7},
                                   {.sliding_window = 100},
                                   {.attention_chunk_size = 1},
                                   {.attention_chunk_size = 4},
                                   {.attention_chunk_size = 9},
                                   {.sliding_window = 3, .attention_chunk_size = 5},
                                   {.is_causal = false, .sliding_window = 1},
                                   {.is_causal = false, .sliding_window = 5},
                                   {.is_causal = false, .attention_chunk_size = 4}};
  for (const Mask& mask : masks)
    for (const int64_t rows : {2, 4, 8})
      for (const int64_t first : {0, 3})
        for (const int64_t count : {0, 1, 3, 7, 8, 21})
          for (const auto split : {ContextSplit::contiguous, ContextSplit::strided}) {
            const int64_t prefix = mask.is_causal ? count / 2 : 0;
            const TokenRun run{.first = first, .count = count, .prefix = prefix};
            SCOPED_TRACE(testing::Message() << mask.description() << " rows " << rows << " first " << first << " count "
                                            << count << " strided " << (split == ContextSplit::strided));
            const LayerCall call{.attention = small(5, mask), .runs = {run}};
            const ParallelConfig config{.tp_degree = 2 * rows, .cp_degree = rows, .context_split = split};
            const LayerTraffic traffic = prefill_traffic(call, config);
            const RankMesh mesh(2 * rows, rows);
            const Bytes tokens = tokens_sent_pair_by_pair(mask, run, rows, split);
            for (int64_t rank = 0; rank < 2 * rows; ++rank)
              ASSERT_EQ(traffic.ranks[static_cast<size_t>(rank)].keys_values,
                        tokens[static_cast<size_t>(mesh.row_of(rank))] * 14 * 4);
          }
}

TEST(Traffic, RunsAddUp) {
  const ParallelConfig config{.tp_degree = 4, .cp_degree = 4, .sequence_parallel_enabled = true};
  const auto kv = [&](std::vector<TokenRun> runs) {
    const LayerCall call{.attention = small(5, {.sliding_window = 4}), .runs = std::move(runs)};
    return of_ranks(prefill_traffic(call, config), &RankTraffic::keys_values);
  };
  const Bytes both = kv({{0, 10}, {5, 13}});
  const Bytes first = kv({{0, 10}});
  const Bytes second = kv({{5, 13}});
  for (size_t rank = 0; rank < 4; ++rank) EXPECT_EQ(both[rank], first[rank] + second[rank]);
}

// [MASK-27]: pieces of 512 tokens end before a prefix that they would cut, and are longer where it is.
TEST(Traffic, PiecesDoNotCutPrefixes) {
  const auto rounds = [](std::vector<TokenRun> runs) {
    return decode_traffic({.attention = small(4), .runs = std::move(runs)}, {.tp_degree = 2}).rounds / 2;
  };
  EXPECT_EQ(rounds({{.count = 1024}}), 2);
  EXPECT_EQ(rounds({{.count = 1024, .prefix = 512}}), 2);
  EXPECT_EQ(rounds({{.count = 1024, .prefix = 1000}}), 2);
  EXPECT_EQ(rounds({{.count = 1024, .prefix = 1024}}), 1);
  EXPECT_EQ(rounds({{.count = 500}, {.count = 524}}), 2);
  EXPECT_EQ(rounds({{.count = 500}, {.count = 524, .prefix = 100}}), 3);
  EXPECT_EQ(rounds({{.count = 500}, {.count = 524, .prefix = 12}}), 2);
}

// Rows of two ranks with 1 and 2 sequences; 4 numbers a token.
LayerTraffic two_decode_rows(OutputDispatch dispatch) {
  const LayerCall call{.attention = small(4), .runs = {{9, 1, 0}, {4, 1, 1}, {5, 1, 1}}};
  return decode_traffic(call, {.tp_degree = 4, .attention_dp_degree = 2, .output_dispatch = dispatch});
}

struct Dispatched {
  OutputDispatch dispatch;
  Bytes sums;
  Bytes output;
  int64_t rounds;
};

TEST(Traffic, RowsOfSequencesComeTogetherInThreeWays) {
  for (const Dispatched& expected : std::vector<Dispatched>{
           // Rows sum, and then gather.
           {OutputDispatch::AR_AG, {2 * 4, 2 * 4, 4 * 4, 4 * 4}, {8 + 16, 8 + 16, 16 + 32, 16 + 32}, 3},
           // The parts of all ranks are gathered. They are whole tokens: of one token the first rank has none.
           {OutputDispatch::RS_AG, {4 * 4, 0, 4 * 4, 4 * 4}, {0, 3 * 16, 3 * 16, 3 * 16}, 2},
           // What is not yet summed is gathered; then all 12 numbers are cut in two parts.
           {OutputDispatch::AG_AR, {6 * 4, 6 * 4, 6 * 4, 6 * 4}, {16 + 24, 16 + 24, 32 + 24, 32 + 24}, 3}}) {
    const LayerTraffic traffic = two_decode_rows(expected.dispatch);
    EXPECT_EQ(of_ranks(traffic, &RankTraffic::sums), expected.sums) << static_cast<int>(expected.dispatch);
    EXPECT_EQ(of_ranks(traffic, &RankTraffic::output), expected.output) << static_cast<int>(expected.dispatch);
    EXPECT_EQ(traffic.rounds, expected.rounds) << static_cast<int>(expected.dispatch);
  }
}

// 8 ranks share 2 KV heads, 4 ranks each; 4 query heads become 8, one a rank.
TEST(Traffic, FlashDecodingSendsQueriesAndPartialResults) {
  const LayerCall call{.attention = small(8), .runs = {{9, 1}, {4, 2}}};
  const LayerTraffic traffic = decode_traffic(call, {.tp_degree = 8, .flash_decoding_enabled = true});
  for (const RankTraffic& rank : traffic.ranks) {
    EXPECT_EQ(rank.queries, 3 * 1 * 8 * 4 * 3);
    EXPECT_EQ(rank.partials, 3 * 1 * (6 + 2) * 4 * 3);
    EXPECT_EQ(rank.sums, 3 * 7 * 4);
    EXPECT_EQ(rank.keys_values, 0);
  }
  EXPECT_EQ(traffic.rounds, 4);
  EXPECT_EQ(traffic.messages, 3 + 3 + 7 + 7);
  // In rows of two ranks no KV head has copies.
  const LayerTraffic rows =
      decode_traffic(call, {.tp_degree = 8, .attention_dp_degree = 4, .flash_decoding_enabled = true});
  EXPECT_EQ(of_ranks(rows, &RankTraffic::queries), Bytes(8));
  // Under a window every rank keeps all that is left.
  const LayerTraffic window = decode_traffic({.attention = small(8, {.sliding_window = 3}), .runs = call.runs},
                                             {.tp_degree = 8, .flash_decoding_enabled = true});
  EXPECT_EQ(of_ranks(window, &RankTraffic::partials), Bytes(8));
}

// 600 keys are runs of 256, 256 and 88 for ranks 0, 1 and 2; the fourth rank of a head keeps none.
TEST(Traffic, DeterministicFlashDecodingSendsAPartialForEachRunOfKeys) {
  AttentionConfig shape = small(8);
  shape.num_key_value_heads = 1;
  const LayerTraffic traffic = decode_traffic({.attention = shape, .runs = {{9, 1}, {599, 1}}},
                                              {.tp_degree = 4, .flash_decoding_enabled = true, .deterministic = true});
  const int64_t set = 2 * (6 + 2) * 4 * 3;
  EXPECT_EQ(of_ranks(traffic, &RankTraffic::partials), (Bytes{set, set, set, 0}));
}

TEST(Traffic, TheSpecialMeshIsFollowed) {
  const AttentionConfig shape{
      .hidden_size = 16, .num_attention_heads = 8, .num_key_value_heads = 8, .head_dim = 2, .v_head_dim = 2};
  const LayerTraffic traffic =
      prefill_traffic({.attention = shape, .runs = {{0, 4}}}, {.tp_degree = 64, .cp_degree = 8});
  // Four of the eight rows have a token: part c of 4 tokens is empty for even c.
  const RankMesh mesh(64, 8);
  for (int64_t rank = 0; rank < 64; ++rank)
    EXPECT_EQ(traffic.ranks[static_cast<size_t>(rank)].keys_values, mesh.row_of(rank) % 2 * 7 * 4 * 4) << rank;
}

TEST(Traffic, WhatMakesNoSenseIsRefused) {
  const auto prefill = [](LayerCall call, const ParallelConfig& config) { return prefill_traffic(call, config); };
  EXPECT_ERROR(prefill({.attention = {}}, {}), "hidden_size is 0");
  AttentionConfig odd = small();
  odd.num_key_value_heads = 3;
  EXPECT_ERROR(prefill({.attention = odd}, {}),
               "num_key_value_heads is 3, expected a divisor of num_attention_heads (4)");
  odd = small();
  odd.head_dim = int64_t{1} << 20;
  EXPECT_ERROR(prefill({.attention = odd}, {}), "the width of all query heads is 4194304");
  EXPECT_ERROR(prefill({.attention = small()}, {.tp_degree = 4, .cp_degree = 3}), "degree is 3");
  EXPECT_ERROR(prefill({.attention = small(), .runs = {{0, -1}}}, {}), "-1 tokens");
  EXPECT_ERROR(prefill({.attention = small(), .runs = {{0, int64_t{1} << 50}}}, {}), "tokens from position 0");
  EXPECT_ERROR(decode_traffic({.attention = small(), .runs = {{0, 1, 2}}}, {.tp_degree = 2, .attention_dp_degree = 2}),
               "row is 2, expected 0 to 1");
}

}  // namespace
}  // namespace regard
