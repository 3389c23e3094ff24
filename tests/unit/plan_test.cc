#include "planning/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "parallel/traffic.h"
#include "regard/mask.h"
#include "support/expect_error.h"

namespace regard {
namespace {

// One layer: 4 query and 2 KV heads of 8 on a width of 32, an MLP of 3 x 32 x 16; 10 words.
ModelSpec small(int64_t layers = 1, const Mask& mask = {}) {
  AttentionConfig attention{.hidden_size = 32, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 8};
  attention.sliding_window = mask.sliding_window;
  attention.attention_chunk_size = mask.attention_chunk_size;
  return {.family = "small",
          .vocab_size = 10,
          .hidden_size = 32,
          .layers = std::vector<LayerSpec>(static_cast<size_t>(layers),
                                           {.attention = attention.validated(), .mlp = DenseMlp{.width = 16}})};
}

// Weights of the attention of a rank with so many heads.
constexpr double weights(int heads, int kv_heads) { return 32 * (2 * heads + 2 * kv_heads) * 8; }

const Workload kWork{.sequences = 4, .context = 10, .prompt = 6};

TEST(RankMemory, OfOneRankIsTheWholeModel) {
  const RankMemory memory = rank_memory(small(3), kWork, {});
  EXPECT_EQ(memory.attention_weights, 3 * weights(4, 2) * 2);
  EXPECT_EQ(memory.other_weights, 3 * (3 * 32 * 16) * 2 + 2 * 32 * 10 * 2);
  EXPECT_EQ(memory.attention_weights + memory.other_weights, small(3).weight_bytes());
  // 4 sequences of 10 tokens, 2 heads, a key and a value of 8 floats.
  EXPECT_EQ(memory.cache, 3 * 4 * 10 * 2 * 16 * 4);
}

TEST(RankMemory, RanksWithCopiesOfAHeadAllStoreIt) {
  const RankMemory memory = rank_memory(small(), kWork, {.tp_degree = 4});
  EXPECT_EQ(memory.attention_weights, weights(1, 1) * 2);
  EXPECT_EQ(memory.cache, 4 * 10 * 1 * 16 * 4);
}

TEST(RankMemory, FlashDecodingSharesItsTokens) {
  const RankMemory memory = rank_memory(small(), kWork, {.tp_degree = 4, .flash_decoding_enabled = true});
  EXPECT_EQ(memory.cache, 4 * 5 * 1 * 16 * 4);
}

TEST(RankMemory, RowsOfDecodeShareSequencesAndRepeatWeights) {
  const RankMemory memory =
      rank_memory(small(), {.sequences = 5, .context = 10, .prompt = 6}, {.tp_degree = 4, .attention_dp_degree = 2});
  // Prefill has one head a rank, decode two.
  EXPECT_EQ(memory.attention_weights, (weights(1, 1) + weights(2, 1)) * 2);
  EXPECT_EQ(memory.cache, 3 * 10 * 1 * 16 * 4);
  EXPECT_EQ(rank_memory(small(), kWork, {.tp_degree = 4, .cp_degree = 2, .attention_dp_degree = 2}).attention_weights,
            weights(2, 1) * 2);
}

TEST(RankMemory, WindowsAndChunksBoundTheCache) {
  EXPECT_EQ(rank_memory(small(1, {.sliding_window = 3}), kWork, {}).cache, 4 * 3 * 2 * 16 * 4);
  // The last of 10 tokens is the second of its chunk.
  EXPECT_EQ(rank_memory(small(1, {.attention_chunk_size = 8}), kWork, {}).cache, 4 * 2 * 2 * 16 * 4);
}

TEST(RankMemory, QuantisedCachesHaveAScaleAKeyAndAValue) {
  const auto cache = [](DType dtype) {
    Workload work = kWork;
    work.cache = dtype;
    return rank_memory(small(), work, {}).cache / (4 * 10 * 2);
  };
  EXPECT_EQ(cache(DType::bf16), 2 * 8 * 2);
  EXPECT_EQ(cache(DType::i8), 2 * (8 + 4));
  EXPECT_EQ(cache(DType::f8_e4m3), 2 * (8 + 4));
  EXPECT_EQ(cache(DType::i4), 2 * (4 + 4));
}

// Speeds of which one at a time matters.
constexpr double kFast = 1e30;
const RankSpeed kOnlyFlops{.flops = 1, .bandwidth = kFast, .link = kFast, .latency = 0, .per_message = 0};
const RankSpeed kOnlyMemory{.flops = kFast, .bandwidth = 1, .link = kFast, .latency = 0, .per_message = 0};

TEST(StageCost, ArithmeticOfAPrefill) {
  // 6 tokens times the weights, and 21 pairs of a query and a key for 4 heads of 8 + 8.
  EXPECT_DOUBLE_EQ(prefill_cost(small(2), kWork, kOnlyFlops, {}).compute,
                   2 * (2 * 6 * weights(4, 2) + 21 * 2 * 4 * 16));
  // The second of two rows has 3 tokens and 4 + 5 + 6 pairs; taking turns, 3 and 2 + 4 + 6.
  const auto rows = [](ContextSplit split) {
    return prefill_cost(small(), kWork, kOnlyFlops, {.tp_degree = 2, .cp_degree = 2, .context_split = split}).compute;
  };
  EXPECT_DOUBLE_EQ(rows(ContextSplit::contiguous), 2 * 3 * weights(4, 2) + 15 * 2 * 4 * 16);
  EXPECT_DOUBLE_EQ(rows(ContextSplit::strided), 2 * 3 * weights(4, 2) + 12 * 2 * 4 * 16);
  // A window of 2: 1 + 5 * 2 pairs.
  EXPECT_DOUBLE_EQ(prefill_cost(small(1, {.sliding_window = 2}), kWork, kOnlyFlops, {}).compute,
                   2 * 6 * weights(4, 2) + 11 * 2 * 4 * 16);
}

TEST(StageCost, MemoryOfADecodeStep) {
  // Weights of 2 bytes once, and 4 sequences' keys and values.
  EXPECT_DOUBLE_EQ(decode_cost(small(), kWork, kOnlyMemory, {}).compute, weights(4, 2) * 2 + 4 * 10 * 2 * 16 * 4);
  EXPECT_DOUBLE_EQ(decode_cost(small(), kWork, kOnlyMemory, {.tp_degree = 4, .attention_dp_degree = 2}).compute,
                   weights(2, 1) * 2 + 2 * 10 * 1 * 16 * 4);
  EXPECT_DOUBLE_EQ(decode_cost(small(), kWork, kOnlyMemory, {.tp_degree = 4, .flash_decoding_enabled = true}).compute,
                   weights(1, 1) * 2 + 4 * 5 * 1 * 16 * 4);
}

TEST(StageCost, TrafficTakesTheLinkAndItsRounds) {
  const RankSpeed speed{.flops = kFast, .bandwidth = kFast, .link = 10, .latency = 100, .per_message = 1};
  const ParallelConfig config{.tp_degree = 4};
  const StageCost cost = decode_cost(small(3), kWork, speed, config);
  const LayerTraffic traffic = decode_traffic({.attention = small().layers[0].attention, .runs = {{9, 4}}}, config);
  EXPECT_DOUBLE_EQ(cost.layer_bytes, static_cast<double>(traffic.most_of_a_rank()));
  EXPECT_DOUBLE_EQ(cost.link, 3 * cost.layer_bytes / 10);
  EXPECT_DOUBLE_EQ(cost.latency, 3 * (2 * 100 + 6 * 1));
  // The MLP's sum: 4 tokens of 32 numbers to the three others and back.
  EXPECT_NEAR(cost.rest, 3 * (4 * 32 * 0.75 * 8 / 10 + 2 * 100 + 6 * 1), 1e-9);
  EXPECT_DOUBLE_EQ(cost.step_bytes, 3 * (cost.layer_bytes + 4 * 32 * 0.75 * 8));
}

// 3 leaves of 128 columns on 4 ranks: none has more than one, and one has none.
TEST(StageCost, MlpsAreDealtOutInLeavesAndTheHeadIsWholeOnEveryRank) {
  ModelSpec model = small(2);
  for (LayerSpec& layer : model.layers) layer.mlp = DenseMlp{.width = 300};
  const double matrices = 2 * (3 * 32 * 128);
  EXPECT_DOUBLE_EQ(decode_cost(model, kWork, kOnlyFlops, {.tp_degree = 4}).rest, 2 * 4 * matrices + 2 * 4 * 32 * 10);
  EXPECT_DOUBLE_EQ(decode_cost(model, kWork, kOnlyMemory, {.tp_degree = 4}).rest, 2 * matrices + 32 * 10 * 2);
  EXPECT_DOUBLE_EQ(rank_memory(model, kWork, {.tp_degree = 4}).other_weights, 2 * matrices + 2 * 32 * 10 * 2);
  model.head.tied = true;
  EXPECT_DOUBLE_EQ(rank_memory(model, kWork, {.tp_degree = 4}).other_weights, 2 * matrices + 32 * 10 * 2);
}

// 1030 tokens are pieces of 512, 512 and 6: in each a round of partial sums and one of results.
TEST(StageCost, MlpsSumPieceByPiece) {
  const Workload work{.context = 1030, .prompt = 1030};
  const RankSpeed speed{.flops = kFast, .bandwidth = kFast, .link = kFast, .latency = 100, .per_message = 1};
  EXPECT_NEAR(prefill_cost(small(3), work, speed, {.tp_degree = 4}).rest, 3 * 3 * 2 * (100 + 3), 1e-9);
  // The input is gathered in one round, results stay where they are; the last layer's are gathered.
  EXPECT_NEAR(prefill_cost(small(3), work, speed, {.tp_degree = 4, .sequence_parallel_enabled = true}).rest,
              (3 * (1 + 3) + 1) * (100 + 3), 1e-9);
}

// 4 ranks, 2 on a host: of its three peers a rank has one near.
TEST(StageCost, HostsHaveALinkAndALatencyOfTheirOwn) {
  RankSpeed speed{.flops = kFast, .bandwidth = kFast, .link = 10, .latency = 100, .per_message = 0};
  speed.ranks_per_host = 2;
  speed.host_link = 1000;
  speed.host_latency = 7;
  // 4 tokens of 32 numbers: a part of 32 numbers for each peer, and 32 results.
  const StageCost one_row = decode_cost(small(), kWork, speed, {.tp_degree = 4});
  EXPECT_NEAR(one_row.link, 2 * 128 * (2.0 / 10 + 1.0 / 1000), 1e-9);
  EXPECT_NEAR(one_row.latency, 2 * 100, 1e-9);
  // Two rows of two: sums inside hosts, results of 2 tokens between them, and a byte for all that caches can take them.
  const StageCost two_rows = decode_cost(small(), kWork, speed, {.tp_degree = 4, .attention_dp_degree = 2});
  EXPECT_NEAR(two_rows.link, 2 * 128 / 1000.0 + 256 / 10.0 + 2 / 10.0 + 1 / 1000.0, 1e-9);
  EXPECT_NEAR(two_rows.latency, 2 * 7 + 100 + 100, 1e-9);
}

TEST(StageCost, TheRestIsMlpsAndTheHead) {
  ModelSpec model = small(2);
  // 4 tokens through 3 x 32 x 16 weights in each layer, and 4 rows of logits.
  EXPECT_DOUBLE_EQ(decode_cost(model, kWork, kOnlyFlops, {}).rest, 2 * (2 * 4 * 3 * 32 * 16) + 2 * 4 * 32 * 10);
  EXPECT_DOUBLE_EQ(decode_cost(model, kWork, kOnlyMemory, {}).rest, 2 * (3 * 32 * 16 * 2) + 32 * 10 * 2);
  // Of 8 experts, 4 tokens with one each touch 4, and the router; a prompt of 6 needs one row of logits.
  for (LayerSpec& layer : model.layers)
    layer.mlp = ExpertsMlp{.experts = 8, .experts_per_token = 1, .expert = {.width = 16}};
  EXPECT_DOUBLE_EQ(decode_cost(model, kWork, kOnlyMemory, {}).rest, 2 * ((4 * 3 * 32 * 16 + 8 * 32) * 2) + 32 * 10 * 2);
  EXPECT_DOUBLE_EQ(prefill_cost(model, kWork, kOnlyFlops, {}).rest, 2 * (2 * 6 * (3 * 32 * 16 + 8 * 32)) + 2 * 32 * 10);
}

TEST(Plans, CoverWhatIsSensibleOnce) {
  const auto all = plans(small(), kWork, {}, 4);
  std::set<std::tuple<int64_t, int64_t, bool, bool>> seen;
  for (const Plan& plan : all) {
    const ParallelConfig& config = plan.config;
    EXPECT_EQ(config.tp_degree, 4);
    EXPECT_TRUE(seen.emplace(config.cp_degree, config.attention_dp_degree, config.sequence_parallel_enabled,
                             config.flash_decoding_enabled)
                    .second);
    EXPECT_TRUE(!config.flash_decoding_enabled || config.attention_dp_degree == 1) << "only 4 ranks have copies";
  }
  // cp 1, 2, 4 with and without SP; dp 1, plain or flash, dp 2 and dp 4.
  EXPECT_EQ(all.size(), 3U * 2 * 2 + 3 * 2 + 3 * 2);
  EXPECT_TRUE(std::ranges::is_sorted(all, {}, &Plan::seconds));
}

TEST(Plans, RowsWithoutATokenOrASequenceAreLeftOut) {
  for (const Plan& plan : plans(small(), {.sequences = 2, .context = 3, .prompt = 3}, {}, 4)) {
    EXPECT_LE(plan.config.attention_dp_degree, 2);
    EXPECT_LE(plan.config.cp_degree, 3);
  }
  // Rows are filled one after the other: of 9 sequences four rows of 8 get two, one gets one.
  for (const Plan& plan : plans(small(), {.sequences = 9, .context = 3, .prompt = 3}, {}, 8))
    EXPECT_NE(plan.config.attention_dp_degree, 8);
}

// 3 KV heads on 4 ranks have no order in which rows of prefill compute what one row of decode keeps.
TEST(Plans, LayoutsThatExchangeKeysAndValuesBetweenTheStagesAreListed) {
  ModelSpec model = small();
  AttentionConfig attention{.hidden_size = 32, .num_attention_heads = 9, .num_key_value_heads = 3, .head_dim = 8};
  model.layers.front().attention = attention.validated();
  std::set<int64_t> rows;
  for (const Plan& plan : plans(model, {.sequences = 1, .context = 50, .prompt = 40}, {}, 4)) {
    EXPECT_EQ(plan.config.attention_dp_degree, 1);
    rows.insert(plan.config.cp_degree);
  }
  EXPECT_EQ(rows, (std::set<int64_t>{1, 2, 4}));
}

TEST(Plans, SequenceParallelismIsOfBothStages) {
  for (const Plan& plan : plans(small(), kWork, {}, 4)) {
    ParallelConfig config = plan.config;
    config.output_dispatch = OutputDispatch::AR_AG;
    if (config.sequence_parallel_enabled) {
      EXPECT_EQ(plan.config.output_dispatch, OutputDispatch::AR_AG);
      EXPECT_DOUBLE_EQ(plan.decode.step_bytes, decode_cost(small(), kWork, {}, config).step_bytes);
    }
  }
}

TEST(Plans, TheTimeOfEverythingIsItsParts) {
  for (const Plan& plan : plans(small(), {.sequences = 3, .context = 9, .prompt = 5, .output = 7}, {}, 2))
    EXPECT_DOUBLE_EQ(plan.seconds, 3 * plan.prefill.seconds() + 7 * plan.decode.seconds());
}

TEST(Plans, OneRankHasOnePlan) {
  const auto all = plans(small(), kWork, {}, 1);
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0].config, ParallelConfig());
  EXPECT_EQ(all[0].prefill.step_bytes, 0);
  EXPECT_EQ(all[0].decode.latency, 0);
}

TEST(Plans, WhatMakesNoSenseIsRefused) {
  EXPECT_ERROR(plans(small(), kWork, {}, 0), "the number of ranks is 0, expected 1 to 4096");
  EXPECT_ERROR(plans(small(), kWork, {}, 5000), "the number of ranks is 5000");
  EXPECT_ERROR(plans(small(), {.sequences = 0, .context = 9, .prompt = 1}, {}, 2), "the number of sequences is 0");
  EXPECT_ERROR(plans(small(), {.sequences = 1, .context = 0, .prompt = 1}, {}, 2), "the context is 0");
  EXPECT_ERROR(plans(small(), {.sequences = 1, .context = 9, .prompt = 10}, {}, 2),
               "the prompt is 10, expected 1 to 9");
  EXPECT_ERROR(plans(small(), {.sequences = 1, .context = 9, .prompt = 9, .output = -1}, {}, 2), "the output is -1");
}

}  // namespace
}  // namespace regard
