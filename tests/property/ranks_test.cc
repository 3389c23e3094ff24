// A layer over ranks gives what it gives on one: bit for bit in deterministic mode, else within the rounding of sums.
#include <gtest/gtest.h>

#include <functional>
#include <mutex>

#include "support/property.h"
#include "support/rank_scene.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

using Outputs = std::vector<Tensor>;

// "", or what the first rank to find anything finds in its outputs.
std::string found_by_ranks(const RankScene& scene, const Layer& layer, const RankSchedule& schedule,
                           const std::function<std::string(const Outputs&)>& find) {
  std::mutex mutex;
  std::string found;
  run_ranks(static_cast<int>(scene.parallel.tp_degree), [&](const std::shared_ptr<Communicator>& world) {
    const std::string own = find(outputs_of(scene, layer, world, schedule));
    const std::scoped_lock lock(mutex);
    if (!own.empty() && found.empty()) found = "rank " + std::to_string(world->rank()) + ": " + own;
  });
  return found;
}

void check(const RankScene& scene) {
  const Layer layer(scene.layer);
  const auto expected = outputs_of_one_rank(scene, layer);
  const auto find = [&](const Outputs& outputs) { return difference(scene, outputs, expected); };
  RC_ASSERT(found_by_ranks(scene, layer, {}, find) == "");
  if (!scene.parallel.deterministic) return;
  // The fixed tree beside the plain sum over all columns, which the oracle checks elsewhere.
  RankScene plain = scene;
  plain.parallel.deterministic = false;
  RC_ASSERT(difference(plain, expected, outputs_of_one_rank(plain, layer)) == "");
}

// What all ranks agree on.
Outputs outputs_by_ranks(const RankScene& scene, const Layer& layer) {
  Outputs agreed;
  std::mutex mutex;
  const auto keep = [&](const Outputs& outputs) {
    const std::scoped_lock lock(mutex);
    if (agreed.empty()) agreed = outputs;
    return bit_difference(outputs, agreed);
  };
  RC_ASSERT(found_by_ranks(scene, layer, {}, keep) == "");
  return agreed;
}

// A span that no call has: all are decode's.
constexpr int64_t kNever = int64_t{1} << 40;

// The same layer and calls by rows of as many ranks, in all else spread and scheduled otherwise.
void check_other_layouts(RankScene scene) {
  ParallelConfig& parallel = scene.parallel;
  const ParallelConfig drawn = parallel;
  parallel = {.tp_degree = drawn.tp_degree,
              .flash_decoding_enabled = drawn.flash_decoding_enabled,
              .gqa = drawn.gqa,
              .prefill_tokens = drawn.prefill_tokens};
  // One rank alone rounds nothing on the way, a row of one rank among others does.
  if (drawn.tp_degree > 1) parallel.rpl_reduce_dtype = drawn.rpl_reduce_dtype;
  const Layer layer(scene.layer);
  const Outputs expected = outputs_by_ranks(scene, layer);

  const int64_t rows = *rc::gen::inRange<int64_t>(1, 5);
  parallel.tp_degree *= rows;
  parallel.cp_degree = parallel.attention_dp_degree = rows;
  parallel.sequence_parallel_enabled = *rc::gen::arbitrary<bool>();
  parallel.output_dispatch = drawn.output_dispatch;
  if (rows > 1) parallel.context_split = *rc::gen::element(ContextSplit::contiguous, ContextSplit::strided);
  RankSchedule schedule{.threads = *rc::gen::inRange(1, 4)};
  // With flash decoding the halves of a span may be in another stage than the whole.
  const bool one_stage =
      !parallel.flash_decoding_enabled || parallel.prefill_tokens == 0 || parallel.prefill_tokens == kNever;
  if (one_stage) schedule.cut = *rc::gen::inRange<int64_t>(0, 3);
  if (!parallel.flash_decoding_enabled) parallel.prefill_tokens = *rc::gen::element<int64_t>(0, 2, 32);
  const auto find = [&](const Outputs& outputs) { return bit_difference(outputs, expected); };
  RC_ASSERT(found_by_ranks(scene, layer, schedule, find) == "");
}

// The stage that all calls are in has rows of as many ranks, the other one any.
void check_one_stage(RankScene scene) {
  ParallelConfig& parallel = scene.parallel;
  parallel = {.tp_degree = parallel.tp_degree, .gqa = parallel.gqa};
  const Layer layer(scene.layer);
  const Outputs expected = outputs_by_ranks(scene, layer);
  const int64_t rows = *rc::gen::inRange<int64_t>(1, 5);
  const bool prefill = *rc::gen::arbitrary<bool>();
  parallel.tp_degree *= rows;
  (prefill ? parallel.cp_degree : parallel.attention_dp_degree) = rows;
  (prefill ? parallel.attention_dp_degree : parallel.cp_degree) = any_divisor(parallel.tp_degree);
  parallel.prefill_tokens = prefill ? 0 : kNever;
  const auto find = [&](const Outputs& outputs) { return bit_difference(outputs, expected); };
  RC_ASSERT(found_by_ranks(scene, layer, {}, find) == "");
}

// Without `deterministic`: how many ranks a row has decides all bits, and nothing else does.
TEST(LayerOverRanks, HasTheBitsOfItsRowsSizeInEveryLayout) {
  check_property(300, [] {
    RankScene scene = *rank_scenes({.ranks = {1, 2, 3, 4}});
    scene.parallel.flash_decoding_enabled = false;
    check_other_layouts(scene);
  });
}

// Stages that are cut differently have the bits of their own rows.
TEST(LayerOverRanks, HasTheBitsOfTheRowsOfItsStage) {
  check_property(200, [] {
    RankScene scene = *rank_scenes({.ranks = {1, 2, 3, 4}, .longest_text = 40});
    scene.parallel.flash_decoding_enabled = false;
    check_one_stage(scene);
  });
}

// Flash decoding adds one dependence, on which spans are decode's.
TEST(LayerOverRanks, HasTheBitsOfItsRowsSizeWhereRanksShareTokens) {
  const RankWishes wishes{.ranks = {2, 3, 4}, .longest_text = 1300, .small = true, .shared_tokens = true};
  check_property(150, [&] {
    RankScene scene = *rank_scenes(wishes);
    scene.parallel.prefill_tokens = *rc::gen::element<int64_t>(0, 8, kNever);
    check_other_layouts(scene);
  });
}

TEST(LayerOverRanks, EqualsOneRankInEveryCombination) {
  check_property(1000, [] { check(*rank_scenes({})); });
}

// Ranks that compute other KV heads in prefill than they keep get their scales from those that do.
TEST(LayerOverRanks, EqualsOneRankWithGivenScales) {
  check_property(300, [] { check(*rank_scenes({.given_scales = true})); });
}

TEST(LayerOverRanks, EqualsOneRankOnDrafts) {
  check_property(300, [] { check(*rank_scenes({.drafts = true})); });
}

// Texts that cross blocks of 256 keys and pieces of 512 tokens.
TEST(LayerOverRanks, EqualsOneRankOnLongTexts) {
  check_property(100, [] { check(*rank_scenes({.ranks = {2, 3, 4}, .longest_text = 1300, .small = true})); });
}

TEST(LayerOverRanks, EqualsOneRankOnDraftsWhereRanksShareTokens) {
  const RankWishes wishes{
      .ranks = {2, 3, 4}, .longest_text = 700, .small = true, .shared_tokens = true, .drafts = true};
  check_property(300, [&] { check(*rank_scenes(wishes)); });
}

TEST(LayerOverRanks, EqualsOneRankWhereRanksShareTokens) {
  const RankWishes wishes{.ranks = {2, 3, 4}, .longest_text = 1300, .small = true, .shared_tokens = true};
  check_property(300, [&] { check(*rank_scenes(wishes)); });
}

}  // namespace
}  // namespace regard::test
