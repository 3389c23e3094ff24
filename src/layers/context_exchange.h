#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "layers/attention_shard.h"
#include "layers/hidden_output.h"
#include "layers/kv_transfer.h"
#include "layers/step_plan.h"
#include "parallel/context_plan.h"

namespace regard {

// What a prefill over ranks adds to the way of one rank: a context, a cache of the keys and values that this rank's
// tokens see. Rows of ranks hand each other the keys and values of their tokens [PAR-22], a piece of each row's in a
// round; what earlier calls left comes from the ranks that keep it; and when all is computed, ranks get what they keep
// for decode. Everything travels as caches store it, so that attention sees the numbers that later tokens will.
class ContextExchange {
 public:
  // `cache` is this rank's, or null; each row of decode has so many slots of the whole.
  ContextExchange(const ContextPlan& plan, const Mask& mask, const AttentionShard& computing,
                  const AttentionShard& keeping, const RankPlace& place, KvCache* cache, int64_t slots_a_row,
                  Workspace& workspace);

  // This row's tokens, as spans of the context.
  [[nodiscard]] KvCache& context() { return *context_; }
  [[nodiscard]] std::span<const Span> spans() const { return spans_; }
  [[nodiscard]] std::span<const SpanCourse> courses() const { return courses_; }

  // Keys and values of some of this row's tokens, ready for a cache: [tokens, KV heads, width] each.
  struct KeysValues {
    ConstTensorView keys, values;
  };
  using Project = std::function<KeysValues(ElementRange tokens)>;
  // Returns when the context has all that some of this row's tokens see; further rounds may be under way. All ranks of
  // a row ask for the same tokens.
  void bring(ElementRange tokens, const Project& project);
  // Takes part in the rounds that are left. Then each rank's cache gets what it keeps: the first that changes in it.
  void finish(const Project& project);

 private:
  // Positions of a sequence in a slot of the context, whose position 0 stands for `origin`.
  struct Held {
    int64_t slot;
    Interval positions;
    int64_t origin;
  };
  void make_context(const Mask& mask);
  [[nodiscard]] KvFormat format_of_computed(const KvFormat& kept, int64_t width) const;
  void add_held(size_t sequence, Interval positions);
  void fetch_prior();
  [[nodiscard]] int64_t last_round_for(ElementRange tokens) const;
  void advance(const Project& project);
  void start_round(const Project& project);
  void put(size_t sequence, int64_t position, int64_t head, const std::byte* from);
  [[nodiscard]] const Held* held(size_t sequence, int64_t position) const;
  void keep();
  void keep_window(Interval window);
  void extend(const ContextSequence& sequence, int64_t end);
  void copy_kept(size_t sequence, Interval positions);
  [[nodiscard]] std::optional<int64_t> own_slot(const ContextSequence& sequence) const;
  [[nodiscard]] std::vector<int64_t> column_members() const;

  const ContextPlan& plan_;
  Mask mask_;
  const AttentionShard& computing_;
  const AttentionShard& keeping_;
  const RankPlace& place_;
  KvCache* cache_;
  int64_t slots_a_row_;
  Workspace& workspace_;
  int64_t rank_;
  std::optional<KvCache> context_;
  std::optional<KvCache> piece_;         // a round's own tokens, as they will be stored
  std::vector<std::vector<Held>> held_;  // by sequence; attention uses the first
  std::vector<Span> spans_;
  std::vector<SpanCourse> courses_;
  int64_t rounds_ = 0;
  int64_t arrived_ = 0;  // rounds
  std::optional<KvTransfer> travelling_;
  std::vector<std::byte> row_;
};

}  // namespace regard
