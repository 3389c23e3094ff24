#include <gtest/gtest.h>

#include <algorithm>

#include "regard/mpi.h"
#include "support/rank_scene.h"

// A layer whose ranks are processes gives what it gives on one: for any number of ranks, rank_main.cc. Threads as ranks
// go through random layers and configs, tests/property/ranks_test.cc; here is one of each kind.
namespace regard::test {
namespace {

class LayerOnMpiRanks : public testing::Test {
 protected:
  mpi::Session session_;
  std::shared_ptr<Communicator> world_ = mpi::world(session_);
};

LayerCase small_layer() {
  LayerCase layer;
  layer.config = {.hidden_size = 32, .num_attention_heads = 8, .num_key_value_heads = 2, .head_dim = 8};
  layer.config.rotary_emb = RotaryConfig{.rotary_dim = 8};
  layer.config.inference.seq_len = 4096;
  layer.hidden_dtype = DType::bf16;
  layer.cache_dtype = DType::bf16;
  layer.storage = KvStorage::paged;
  layer.page_size = 16;
  layer.seed = 5;
  return layer;
}

LayerCase windowed(LayerCase layer) {
  layer.config.sliding_window = 21;
  layer.storage = KvStorage::ring;
  return layer;
}

LayerCase chunked(LayerCase layer) {
  layer.config.attention_chunk_size = 24;
  layer.storage = KvStorage::chunk;
  return layer;
}

LayerCase with_extras(LayerCase layer) {
  layer.config.learned_sinks_size = 1;
  layer.config.qkv_bias = true;
  layer.config.o_bias = true;
  return layer;
}

std::vector<int64_t> divisors_of(int64_t number) {
  std::vector<int64_t> divisors;
  for (int64_t d = 2; d <= number; ++d)
    if (number % d == 0) divisors.push_back(d);
  return divisors;
}

// Each way of spreading a layer by itself, and some together.
std::vector<ParallelConfig> configs_of(int64_t ranks) {
  const ParallelConfig tp{.tp_degree = ranks, .prefill_tokens = 4};
  std::vector<ParallelConfig> all = {tp};
  const auto add = [&](ParallelConfig config, auto... changes) {
    (changes(config), ...);
    all.push_back(config);
  };
  const auto sp = [](ParallelConfig& c) { c.sequence_parallel_enabled = true; };
  const auto flash = [](ParallelConfig& c) { c.flash_decoding_enabled = true; };
  const auto strided = [](ParallelConfig& c) { c.context_split = ContextSplit::strided; };
  const auto bf16 = [](ParallelConfig& c) { c.rpl_reduce_dtype = DType::bf16; };
  add(tp, sp);
  add(tp, flash);
  add(tp, bf16);
  for (const int64_t degree : divisors_of(ranks)) {
    const auto cp = [&](ParallelConfig& c) { c.cp_degree = degree; };
    const auto dp = [&](ParallelConfig& c) { c.attention_dp_degree = degree; };
    add(tp, cp);
    add(tp, cp, strided);
    for (const auto dispatch : {OutputDispatch::AR_AG, OutputDispatch::RS_AG, OutputDispatch::AG_AR})
      add(tp, dp, [&](ParallelConfig& c) { c.output_dispatch = dispatch; });
    add(tp, cp, dp, sp, strided);
    add(tp, cp, flash, strided);
    add(tp, dp, flash, sp);
    add(tp, dp, [&](ParallelConfig& c) { c.cp_degree = ranks; });
  }
  return all;
}

// A prefill, its second half, two more sequences, decode of all, decode beside a prefill, and decode again.
std::vector<std::vector<Span>> calls() {
  return {{{0, 0, 45}},
          {{0, 45, 30}},
          {{1, 0, 33}, {2, 0, 3}},
          {{0, 75, 1}, {1, 33, 1}, {2, 3, 1}},
          {{0, 76, 1}, {3, 0, 17}, {2, 4, 2}},
          {{0, 77, 1}, {1, 34, 1}, {2, 6, 1}, {3, 17, 1}}};
}

void expect_as_one_rank(const std::shared_ptr<Communicator>& world, const LayerCase& layer_case,
                        const std::vector<ParallelConfig>& configs, const std::vector<std::vector<Span>>& calls) {
  const Layer layer(layer_case);
  for (const bool deterministic : {true, false}) {
    RankScene scene{.layer = layer_case, .parallel = {}, .slots = 4, .calls = calls};
    scene.parallel.deterministic = deterministic;
    const auto expected = outputs_of_one_rank(scene, layer);
    for (const ParallelConfig& config : configs) {
      if (deterministic && config.rpl_reduce_dtype) continue;
      scene.parallel = config;
      scene.parallel.deterministic = deterministic;
      EXPECT_EQ(difference(scene, outputs_of(scene, layer, world), expected), "") << scene;
    }
  }
}

TEST_F(LayerOnMpiRanks, IsThatOfOneRankWhereTokensSeeAll) {
  for (const LayerCase& layer : {small_layer(), with_extras(small_layer())})
    expect_as_one_rank(world_, layer, configs_of(world_->size()), calls());
}

TEST_F(LayerOnMpiRanks, IsThatOfOneRankUnderAWindow) {
  for (const LayerCase& layer : {windowed(small_layer()), with_extras(windowed(small_layer()))})
    expect_as_one_rank(world_, layer, configs_of(world_->size()), calls());
}

TEST_F(LayerOnMpiRanks, IsThatOfOneRankInChunks) {
  for (const LayerCase& layer : {chunked(small_layer()), with_extras(chunked(small_layer()))})
    expect_as_one_rank(world_, layer, configs_of(world_->size()), calls());
}

// The mesh of 64 ranks that is not one row after the other.
TEST_F(LayerOnMpiRanks, IsThatOfOneRankOnTheEightByEightMesh) {
  if (world_->size() != 64) GTEST_SKIP() << "needs 64 ranks";
  LayerCase layer = small_layer();
  layer.config.num_attention_heads = 16;
  layer.config.num_key_value_heads = 8;
  const ParallelConfig cp{.tp_degree = 64, .cp_degree = 8, .prefill_tokens = 4};
  ParallelConfig both = cp;
  both.attention_dp_degree = 8;
  both.sequence_parallel_enabled = true;
  ParallelConfig dp = cp;
  dp.cp_degree = 1;
  dp.attention_dp_degree = 8;
  expect_as_one_rank(world_, layer, {cp, both, dp}, {{{0, 0, 70}, {1, 0, 9}}, {{0, 70, 1}, {1, 9, 1}}});
}

}  // namespace
}  // namespace regard::test
