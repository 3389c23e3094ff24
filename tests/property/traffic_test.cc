// What a layer over ranks sends is what parallel/traffic.h counts, byte for byte.
#include "parallel/traffic.h"

#include <gtest/gtest.h>

#include <mutex>

#include "parallel/gqa_sharding.h"
#include "support/property.h"
#include "support/rank_scene.h"
#include "support/thread_ranks.h"

namespace regard::test {
namespace {

// Copies of a KV head are those of the ranks of a row of decode.
bool shares_tokens(const RankScene& scene) {
  const ParallelConfig& p = scene.parallel;
  const AttentionConfig& c = scene.layer.config;
  const bool all_tokens = c.sliding_window == 0 && c.attention_chunk_size == 0;
  return p.flash_decoding_enabled && all_tokens &&
         GqaSharding(c.num_attention_heads, c.num_key_value_heads, p.tp_degree / p.attention_dp_degree, p.gqa)
                 .kv_copies() > 1;
}

bool spreads_stages_differently(const RankScene& scene) {
  const ParallelConfig& p = scene.parallel;
  return p.cp_degree > 1 || p.attention_dp_degree > 1 || shares_tokens(scene);
}

// Sequence slots of a row of decode: those of its cache, or so many that all of the call have a place.
int64_t slots_a_row(const RankScene& scene, const std::vector<Span>& spans) {
  int64_t slots = scene.with_cache ? scene.slots : 1;
  for (const Span& span : spans)
    if (!scene.with_cache) slots = std::max(slots, span.slot + 1);
  return (slots + scene.parallel.attention_dp_degree - 1) / scene.parallel.attention_dp_degree;
}

// By rank.
std::vector<RankTraffic> formula_of(const RankScene& scene, const Layer& layer, const std::vector<Span>& spans) {
  LayerCall prefill{.attention = layer.config(),
                    .runs = {},
                    .hidden = layer.hidden_dtype(),
                    .cache = layer.cache_dtype(),
                    .kept = !scene.with_cache                              ? KeptTokens::none
                            : scene.layer.storage == KvStorage::contiguous ? KeptTokens::all
                                                                           : KeptTokens::visible,
                    .page_size = std::max<int64_t>(1, scene.layer.page_size)};
  LayerCall decode = prefill;
  const bool differently = spreads_stages_differently(scene);
  const int64_t slots = slots_a_row(scene, spans);
  for (const Span& span : spans) {
    const TokenRun run{.first = span.first_position,
                       .count = span.count,
                       .row = std::max<int64_t>(0, span.slot) / slots,
                       .is_skipped = span.slot == -1,
                       .prefix = span.prefix};
    const bool is_prefill = differently && span.count >= scene.parallel.prefill_tokens;
    (is_prefill ? prefill : decode).runs.push_back(run);
  }
  std::vector<RankTraffic> sums(static_cast<size_t>(scene.parallel.tp_degree));
  const auto add = [&](const LayerTraffic& traffic) {
    for (size_t rank = 0; rank < sums.size(); ++rank)
      for (const auto part : {&RankTraffic::entry, &RankTraffic::norms, &RankTraffic::keys_values, &RankTraffic::prior,
                              &RankTraffic::queries, &RankTraffic::partials, &RankTraffic::sums, &RankTraffic::output})
        sums[rank].*part += traffic.ranks[rank].*part;
  };
  if (!prefill.runs.empty()) add(prefill_traffic(prefill, scene.parallel));
  // Where both are spread alike, the formulas are one.
  if (!decode.runs.empty())
    add(differently ? decode_traffic(decode, scene.parallel) : prefill_traffic(decode, scene.parallel));
  return sums;
}

// Where ranks share sequences or their tokens, a byte that tells each other rank whether this one takes the call.
int64_t agreement_bytes(const RankScene& scene) {
  return scene.with_cache && (scene.parallel.attention_dp_degree > 1 || shares_tokens(scene))
             ? scene.parallel.tp_degree - 1
             : 0;
}

std::string difference(const RankScene& scene, const Layer& layer, size_t rank, const std::vector<int64_t>& sent) {
  for (size_t call = 0; call < sent.size(); ++call) {
    const RankTraffic formula = formula_of(scene, layer, scene.calls[call])[rank];
    const int64_t expected = formula.total() + agreement_bytes(scene);
    if (sent[call] == expected) continue;
    std::ostringstream out;
    out << "call " << call << ": rank " << rank << " sends " << sent[call] << " bytes instead of " << expected
        << ": entry " << formula.entry << ", norms " << formula.norms << ", keys and values " << formula.keys_values
        << ", prior " << formula.prior << ", queries " << formula.queries << ", partials " << formula.partials
        << ", sums " << formula.sums << ", output " << formula.output;
    return out.str();
  }
  return "";
}

void check(const RankScene& scene) {
  const Layer layer(scene.layer);
  std::mutex mutex;
  std::string found;
  run_ranks(static_cast<int>(scene.parallel.tp_degree), [&](const std::shared_ptr<Communicator>& world) {
    const std::string own =
        difference(scene, layer, static_cast<size_t>(world->rank()), bytes_sent_in(scene, layer, world));
    const std::scoped_lock lock(mutex);
    if (found.empty()) found = own;
  });
  RC_ASSERT(found == "");
}

// A width that 3 or 5 ranks do not divide, nor 512 times it, so that one sees how many tokens are cut together.
// Bidirectional layers in one row take them all, which is too rare to be left to chance.
RankScene with_uneven_parts(RankScene scene) {
  scene.layer.config.hidden_size = 29;
  scene.layer.qkv_type = WeightType::f32;
  if (!scene.layer.config.is_causal) {
    scene.parallel.cp_degree = scene.parallel.attention_dp_degree = 1;
    scene.parallel.context_split = ContextSplit::contiguous;
  }
  return scene;
}

TEST(TrafficOfALayer, IsWhatTheFormulasSay) {
  check_property(2000, [] { check(*rank_scenes({.ranks = {1, 2, 3, 4, 6, 8}, .small = true})); });
}

TEST(TrafficOfALayer, IsWhatTheFormulasSayOnTheEightByEightMesh) {
  check_property(30, [] { check(*rank_scenes({.ranks = {64}, .small = true})); });
}

// Texts that cross blocks of 256 keys and pieces of 512 tokens.
constexpr int64_t kLong = 1300;

TEST(TrafficOfALayer, IsWhatTheFormulasSayOfLongTexts) {
  const RankWishes wishes{.ranks = {3, 4, 5}, .longest_text = kLong, .small = true};
  check_property(300, [&] { check(with_uneven_parts(*rank_scenes(wishes))); });
}

TEST(TrafficOfALayer, IsWhatTheFormulasSayOfSharedTokens) {
  const RankWishes wishes{.ranks = {2, 3, 4}, .longest_text = kLong, .small = true, .shared_tokens = true};
  check_property(300, [&] { check(with_uneven_parts(*rank_scenes(wishes))); });
}

}  // namespace
}  // namespace regard::test
