#pragma once

#include <optional>
#include <span>
#include <vector>

#include "kernels/workspace.h"
#include "layers/head_rows.h"
#include "layers/token_tree.h"
#include "regard/attention_config.h"
#include "regard/cache.h"
#include "regard/mask.h"
#include "regard/position.h"
#include "regard/workspace.h"

namespace regard {

// How many of a call's tokens are appended to the cache at once, before any of them is attended to.
[[nodiscard]] int64_t tokens_at_once(const AttentionConfig& config, bool has_trees, int64_t tokens);

// Where the tokens of a span stand in their sequence, and what of it its cache has.
struct SpanCourse {
  int64_t origin = 0;  // the position that the cache's position 0 stands for
  int64_t first = 0;   // tokens first, first + stride, ...
  int64_t stride = 1;
  int64_t end = 0;         // of the sequence
  int64_t prefix_end = 0;  // of its prefix
};

// The packed tokens of a step: what all of its layers have in common.
struct Step {
  int64_t tokens = 0;
  std::span<const Span> spans;
  bool has_cache = true;
  std::span<const ConstTensorView> active_masks = {};
  std::span<const int64_t> rotary_position_ids = {};
  TokenShare share = {};                     // of the sequences' tokens those that the caches have
  std::span<const SpanCourse> courses = {};  // of spans whose tokens are not all of a sequence's; none: as spans say
};

// What a step needs to know, and no layer finds out again: spans that are checked, trees, positions, and for each kind
// of mask and of rotation that layers have, intervals and angles. It is made before anything changes; then layers run.
// Its memory is the workspace's, of which the last plan that was made owns this part.
class StepPlan {
 public:
  // Throws Error for spans that do not add up to the tokens, and for masks that are no trees.
  StepPlan(const Step& step, Workspace& workspace);

  // Throws Error where a layer can't take the step: spans that its mask does not allow, a cache of another shape,
  // without room, or which gives back what tokens see. `config` has the rank's heads.
  void check(const AttentionConfig& config, const KvCache& cache) const;

  [[nodiscard]] int64_t tokens() const { return step_.tokens; }
  // Without a cache each is a sequence of its own: slot i from position 0 on.
  [[nodiscard]] std::span<const Span> spans() const { return step_.spans; }
  // The tokens of the longest span.
  [[nodiscard]] int64_t longest() const;
  [[nodiscard]] const TokenShare& share() const { return step_.share; }
  // By span; empty: no span has a tree.
  [[nodiscard]] std::span<std::optional<TokenTree>> trees() { return trees_; }
  [[nodiscard]] bool has_tree(size_t span) const { return !trees_.empty() && trees_[span].has_value(); }
  [[nodiscard]] int64_t at_once(const AttentionConfig& config) const {
    return tokens_at_once(config, !trees_.empty(), step_.tokens);
  }

  // Of each token: its position in its sequence, and the one that rotates it.
  [[nodiscard]] std::span<const int64_t> positions() const;
  [[nodiscard]] std::span<const int64_t> rotary_positions() const;
  // What each token sees under a mask, in positions of its cache.
  [[nodiscard]] const Interval* visible(const Mask& mask);
  // cos and sin of tokens first..first+count-1. Those of long steps are made anew a window at a time, so that memory
  // does not grow with the step.
  [[nodiscard]] RowAngles angles(const RotaryEmbedding& rotary, int64_t first, int64_t count);

 private:
  void begin_sequences();
  void find_courses();
  void find_positions();
  void check_spans() const;
  void check_reach(const Mask& mask, const KvCache& cache) const;

  Step step_;
  Workspace& workspace_;
  StepMemory& memory_;
  std::vector<std::optional<TokenTree>> trees_;
};

// The memory of plans, which steps reuse.
struct StepMemory {
  struct Seen {
    Mask mask;
    std::vector<Interval> intervals;
  };
  struct Rotated {
    uint64_t rotation = 0;
    int64_t first = 0;
    int64_t count = 0;
    Buffer cos, sin;
  };

  std::vector<Span> spans;
  std::vector<SpanCourse> courses;
  std::vector<int64_t> positions;
  std::vector<Seen> seen;        // the first `masks` are the step's
  std::vector<Rotated> rotated;  // the first `rotations` are the step's
  size_t masks = 0;
  size_t rotations = 0;
};

}  // namespace regard
