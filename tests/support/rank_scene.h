#pragma once

#include <iosfwd>
#include <vector>

#include "regard/parallel.h"
#include "support/draft_tree.h"
#include "support/layer_case.h"

// A layer at work over ranks, against the same layer on one rank.
namespace regard::test {

// Of a span's tokens: how they branch, if they do, and which of them stay once all are computed.
struct RankDraft {
  DraftTree tree;
  std::vector<int64_t> accepted;  // none: all
};

// Calls of a layer: each has the next tokens of some sequences.
struct RankScene {
  LayerCase layer;
  ParallelConfig parallel;
  int64_t slots = 1;
  std::vector<std::vector<Span>> calls;
  std::vector<std::vector<RankDraft>> drafts;  // one a span, or none at all
  bool with_cache = true;
  bool with_norm = false;  // an input norm, and a residual
  int64_t speculation_length = 0;
};
std::ostream& operator<<(std::ostream& out, const RankScene& scene);

// What a scene may hold.
struct RankWishes {
  std::vector<int64_t> ranks = {1, 2, 3, 4, 6, 8};
  int64_t longest_text = 80;
  bool small = false;
  bool shared_tokens = false;  // flash decoding of one KV head
  bool drafts = false;         // tokens that branch, or are taken back
  bool given_scales = false;   // an 8-bit cache whose scales are known beforehand
};
rc::Gen<RankScene> rank_scenes(RankWishes wishes);
// Drawn inside a property.
int64_t any_divisor(int64_t number);

// How a rank computes the calls of a scene.
struct RankSchedule {
  int threads = 1;
  // Each span in two calls, the first with so many thirds of its tokens, where it may be cut: a causal one without a
  // prefix or a draft, in a cache. 0: at once.
  int64_t cut = 0;
};

// The hidden states [tokens, hidden_size] of every call, by one rank.
std::vector<Tensor> outputs_of_one_rank(const RankScene& scene, const Layer& layer);
// The same over `ranks`, which all call this; every rank gets all of them.
std::vector<Tensor> outputs_of(const RankScene& scene, const Layer& layer, const std::shared_ptr<Communicator>& world,
                               const RankSchedule& schedule = {});

// The bytes that this rank sends to others in each call; every rank of `world` calls this.
std::vector<int64_t> bytes_sent_in(const RankScene& scene, const Layer& layer,
                                   const std::shared_ptr<Communicator>& world);

// "" if they agree: bit for bit where the scene is deterministic, else within what another order of sums may change.
std::string difference(const RankScene& scene, const std::vector<Tensor>& ours, const std::vector<Tensor>& theirs);
// "" if all bits are equal.
std::string bit_difference(const std::vector<Tensor>& ours, const std::vector<Tensor>& theirs);

}  // namespace regard::test
