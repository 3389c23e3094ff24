// A layer over ranks gives what it gives on one: bit for bit in deterministic mode, else within the rounding of sums.
#include <gtest/gtest.h>

#include <mutex>

#include "support/property.h"
#include "support/rank_scene.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

void check(const RankScene& scene) {
  const Layer layer(scene.layer);
  const auto expected = outputs_of_one_rank(scene, layer);
  std::mutex mutex;
  std::string found;
  run_ranks(static_cast<int>(scene.parallel.tp_degree), [&](const std::shared_ptr<Communicator>& world) {
    const std::string own = difference(scene, outputs_of(scene, layer, world), expected);
    const std::scoped_lock lock(mutex);
    if (!own.empty() && found.empty()) found = "rank " + std::to_string(world->rank()) + ": " + own;
  });
  RC_ASSERT(found == "");
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
