// Which heads each rank holds.
#include "parallel/gqa_sharding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "support/expect_error.h"

namespace regard {
namespace {

using Heads = std::vector<int64_t>;
constexpr int64_t P = -1;  // a head of zeros
constexpr GQA kReplicate = GQA::REPLICATE_TO_TP_DEGREE;
constexpr GQA kConvert = GQA::CONVERT_TO_MHA;

Heads q_of(const GqaSharding& sharding, int64_t shard) {
  const auto heads = sharding.q_heads_of(shard);
  return {heads.begin(), heads.end()};
}
Heads kv_of(const GqaSharding& sharding, int64_t shard) {
  const auto heads = sharding.kv_heads_of(shard);
  return {heads.begin(), heads.end()};
}
Heads all_q(const GqaSharding& sharding) { return {sharding.q_sources().begin(), sharding.q_sources().end()}; }
Heads all_kv(const GqaSharding& sharding) { return {sharding.kv_sources().begin(), sharding.kv_sources().end()}; }

// [PROJ-3]..[PROJ-6]. Cases c and i ask for no conversion here, since KV heads are only split [GAP-2].
TEST(GqaSharding, TheNineWorkedCasesHaveTheirCounts) {  // [PROJ-5]
  struct Case {
    char name;
    int64_t heads, kv_heads, tp;
    GQA strategy;
    bool splits;
    int64_t padded, padded_kv, local, local_kv, group;
  };
  for (const Case& c : {Case{'a', 56, 8, 32, kReplicate, false, 64, 32, 2, 1, 2},  //
                        Case{'b', 6, 2, 4, kReplicate, false, 8, 4, 2, 1, 2},      //
                        Case{'c', 16, 8, 4, kReplicate, true, 16, 8, 4, 2, 2},     //
                        Case{'d', 6, 3, 4, kConvert, false, 8, 8, 2, 2, 1},        //
                        Case{'e', 6, 6, 4, kConvert, false, 8, 8, 2, 2, 1},        //
                        Case{'f', 4, 1, 8, kReplicate, false, 8, 8, 1, 1, 1},      //
                        Case{'g', 8, 8, 16, kReplicate, false, 16, 16, 1, 1, 1},   //
                        Case{'h', 32, 8, 8, kReplicate, true, 32, 8, 4, 1, 4},     //
                        Case{'i', 8, 2, 1, kReplicate, true, 8, 2, 8, 2, 4}}) {
    SCOPED_TRACE(c.name);
    const GqaSharding sharding(c.heads, c.kv_heads, c.tp);
    EXPECT_EQ(sharding.strategy(), c.strategy);
    EXPECT_EQ(sharding.splits(), c.splits);
    EXPECT_EQ(sharding.padded_heads(), c.padded);
    EXPECT_EQ(sharding.padded_kv_heads(), c.padded_kv);
    EXPECT_EQ(sharding.local_heads(), c.local);
    EXPECT_EQ(sharding.local_kv_heads(), c.local_kv);
    EXPECT_EQ(sharding.group_size(), c.group);
  }
}

TEST(GqaSharding, ReplicatePutsZeroHeadsBehindEachGroup) {  // [PROJ-7]
  const GqaSharding b(6, 2, 4);
  EXPECT_EQ(all_q(b), (Heads{0, 1, 2, P, 3, 4, 5, P}));
  EXPECT_EQ(q_of(b, 0), (Heads{0, 1}));
  EXPECT_EQ(q_of(b, 1), (Heads{2, P}));
  EXPECT_EQ(q_of(b, 2), (Heads{3, 4}));
  EXPECT_EQ(q_of(b, 3), (Heads{5, P}));
  const GqaSharding a(56, 8, 32);
  EXPECT_EQ(q_of(a, 0), (Heads{0, 1}));
  EXPECT_EQ(q_of(a, 1), (Heads{2, 3}));
  EXPECT_EQ(q_of(a, 2), (Heads{4, 5}));
  EXPECT_EQ(q_of(a, 3), (Heads{6, P}));
  EXPECT_EQ(q_of(a, 4), (Heads{7, 8}));
  EXPECT_EQ(q_of(a, 31), (Heads{55, P}));
}

TEST(GqaSharding, ReplicatePutsCopiesOfAKvHeadOnNeighbours) {  // [PROJ-8]
  EXPECT_EQ(all_kv(GqaSharding(6, 2, 4)), (Heads{0, 0, 1, 1}));
  EXPECT_EQ(all_kv(GqaSharding(32, 8, 8)), (Heads{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(GqaSharding(6, 2, 4).kv_copies(), 2);
  EXPECT_EQ(GqaSharding(32, 8, 8).kv_copies(), 1);
  EXPECT_EQ(GqaSharding(4, 1, 8).kv_copies(), 8);
  EXPECT_EQ(GqaSharding(6, 3, 4).kv_copies(), 1);
  EXPECT_EQ(GqaSharding(6, 2, 4, kConvert).kv_copies(), 1);
}

TEST(GqaSharding, ReplicateWithAsManyKvHeadsHasZeroHeadsInBetween) {  // [PROJ-9]
  const GqaSharding g(8, 8, 16);
  EXPECT_EQ(all_q(g), (Heads{0, P, 1, P, 2, P, 3, P, 4, P, 5, P, 6, P, 7, P}));
  EXPECT_EQ(all_kv(g), (Heads{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7}));
  EXPECT_EQ(q_of(g, 1), (Heads{P}));
  EXPECT_EQ(kv_of(g, 1), (Heads{0}));
}

TEST(GqaSharding, ConvertPutsZeroHeadsAtTheTail) {  // [PROJ-10], [PROJ-11]
  const GqaSharding e(6, 6, 4);
  EXPECT_EQ(all_q(e), (Heads{0, 1, 2, 3, 4, 5, P, P}));
  EXPECT_EQ(all_kv(e), (Heads{0, 1, 2, 3, 4, 5, P, P}));
  const GqaSharding d(6, 3, 4);
  EXPECT_EQ(all_q(d), (Heads{0, 1, 2, 3, 4, 5, P, P}));
  EXPECT_EQ(all_kv(d), (Heads{0, 0, 1, 1, 2, 2, P, P}));
}

TEST(GqaSharding, ConvertHasAsManyKvHeadsAsQueryHeads) {  // [GAP-1]
  EXPECT_EQ(GqaSharding(6, 3, 4).padded_kv_heads(), 8);
  const GqaSharding no_padding(12, 3, 4);
  EXPECT_EQ(no_padding.padded_heads(), 12);
  EXPECT_EQ(all_kv(no_padding), (Heads{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2}));
}

TEST(GqaSharding, SplittingIsTheSameUnderBothStrategies) {  // [GAP-2]
  for (const GQA requested : {kReplicate, kConvert}) {
    const GqaSharding c(16, 8, 4, requested);
    EXPECT_TRUE(c.splits());
    EXPECT_EQ(c.strategy(), requested);
    EXPECT_EQ(q_of(c, 1), (Heads{4, 5, 6, 7}));
    EXPECT_EQ(kv_of(c, 1), (Heads{2, 3}));
    EXPECT_EQ(c.kv_copies(), 1);
  }
}

struct Model {
  const char* name;
  int64_t heads, kv_heads;
};
constexpr Model kModels[] = {{"Llama 3 8B", 32, 8},
                             {"Llama 3 70B", 64, 8},
                             {"Llama 3.1 405B", 128, 8},
                             {"Llama 3.2 3B", 24, 8},
                             {"Qwen2.5 0.5B", 14, 2},
                             {"Qwen2.5 7B", 28, 4},
                             {"Qwen2.5 32B", 40, 8},
                             {"Qwen3 0.6B", 16, 8},
                             {"Gemma 2 2B", 8, 4},
                             {"Gemma 3 1B", 4, 1},
                             {"Gemma 3 27B", 32, 16},
                             {"gpt-oss 20b and 120b", 64, 8},
                             {"Mistral 7B, Mixtral 8x7B", 32, 8},
                             {"Mixtral 8x22B", 48, 8},
                             {"Phi-3 mini", 32, 32},
                             {"Phi-3 medium", 40, 10},
                             {"SmolLM2 135M", 9, 3},
                             {"SmolLM2 360M", 15, 5},
                             {"OLMo 2 7B", 32, 32},
                             {"OLMo 2 32B", 40, 8},
                             {"DeepSeek-V2-Lite, as many KV heads", 16, 16},
                             {"Falcon 7B", 71, 1},
                             {"Falcon 40B", 128, 8},
                             {"Command R", 64, 64},
                             {"Command R+", 96, 8},
                             {"Granite 3.0 8B", 32, 8},
                             {"StarCoder2 3B", 24, 2},
                             {"StarCoder2 7B", 36, 4}};

void expect_every_query_head_once(const GqaSharding& sharding) {
  Heads found = all_q(sharding);
  EXPECT_TRUE(std::ranges::all_of(found, [&](int64_t head) { return head >= P && head < sharding.heads(); }));
  std::erase(found, P);
  EXPECT_TRUE(std::ranges::is_sorted(found));
  EXPECT_EQ(static_cast<int64_t>(found.size()), sharding.heads());
  EXPECT_EQ(std::ranges::adjacent_find(found), found.end());
}

// Every local query head reads, as local head i / group, the KV head that the checkpoint gives it.
void expect_own_kv_heads(const GqaSharding& sharding) {
  const int64_t source_group = sharding.heads() / sharding.kv_heads();
  for (int64_t shard = 0; shard < sharding.tp(); ++shard) {
    const Heads q = q_of(sharding, shard);
    const Heads kv = kv_of(sharding, shard);
    for (size_t i = 0; i < q.size(); ++i) {
      if (q[i] == P) continue;
      const int64_t beside = kv[i / static_cast<size_t>(sharding.group_size())];
      EXPECT_EQ(beside, q[i] / source_group) << "shard " << shard << ", local head " << i;
    }
  }
}

void expect_shards_are_consecutive_equal_parts(const GqaSharding& sharding) {  // [PROJ-14]
  Heads q;
  Heads kv;
  for (int64_t shard = 0; shard < sharding.tp(); ++shard) {
    const Heads own_q = q_of(sharding, shard);
    const Heads own_kv = kv_of(sharding, shard);
    EXPECT_EQ(static_cast<int64_t>(own_q.size()), sharding.local_heads());
    EXPECT_EQ(static_cast<int64_t>(own_kv.size()), sharding.local_kv_heads());
    q.insert(q.end(), own_q.begin(), own_q.end());
    kv.insert(kv.end(), own_kv.begin(), own_kv.end());
  }
  EXPECT_EQ(q, all_q(sharding));
  EXPECT_EQ(kv, all_kv(sharding));
}

TEST(GqaSharding, HoldsForRealModelsOnUpTo64Ranks) {
  for (const Model& model : kModels)
    for (int64_t tp = 1; tp <= 64; ++tp)
      for (const GQA requested : {kReplicate, kConvert}) {
        SCOPED_TRACE(::testing::Message() << model.name << ", tp " << tp << ", " << name_of(requested));
        const GqaSharding sharding(model.heads, model.kv_heads, tp, requested);
        // The fewest heads that can be dealt out evenly [PROJ-3].
        EXPECT_EQ(sharding.padded_heads(), (model.heads + tp - 1) / tp * tp);
        EXPECT_EQ(sharding.padded_kv_heads() % tp, 0);
        EXPECT_EQ(sharding.local_heads() % sharding.local_kv_heads(), 0);
        expect_every_query_head_once(sharding);
        expect_own_kv_heads(sharding);
        expect_shards_are_consecutive_equal_parts(sharding);
      }
}

// Ranks with the same KV head are neighbours, kv_copies() of them at a time.
TEST(GqaSharding, KvCopiesAreTheRanksWithTheSameKvHead) {
  for (const Model& model : kModels)
    for (int64_t tp = 1; tp <= 64; ++tp) {
      const GqaSharding sharding(model.heads, model.kv_heads, tp);
      if (sharding.strategy() != kReplicate || sharding.splits()) continue;
      SCOPED_TRACE(::testing::Message() << model.name << ", tp " << tp);
      for (int64_t shard = 0; shard < tp; ++shard)
        EXPECT_EQ(kv_of(sharding, shard), Heads{shard / sharding.kv_copies()});
    }
}

TEST(GqaSharding, RefusesCountsThatMakeNoSense) {
  EXPECT_ERROR(GqaSharding(0, 1, 1), "sharding: num_attention_heads is 0, expected 1 to");
  EXPECT_ERROR(GqaSharding(4, -1, 1), "sharding: num_key_value_heads is -1, expected 1 to");
  EXPECT_ERROR(GqaSharding(4, 1, 0), "sharding: tp_degree is 0, expected 1 to");
  EXPECT_ERROR(GqaSharding(4, 1, int64_t{1} << 40), "sharding: tp_degree is");
  EXPECT_ERROR(GqaSharding(6, 4, 2), "num_key_value_heads is 4, expected a divisor of num_attention_heads 6");
  const GqaSharding sharding(4, 2, 2);
  EXPECT_ERROR(sharding.q_heads_of(2), "sharding: shard is 2, expected 0 to 1");
  EXPECT_ERROR(sharding.kv_heads_of(-1), "sharding: shard is -1, expected 0 to 1");
}

TEST(GqaSharding, StrategiesHaveTheNamesOfTheReference) {
  EXPECT_EQ(name_of(kReplicate), "replicate-to-tp-degree");
  EXPECT_EQ(name_of(kConvert), "convert-to-mha");
}

}  // namespace
}  // namespace regard
