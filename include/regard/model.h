#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <vector>

#include "regard/attention.h"
#include "regard/checkpoint.h"
#include "regard/linear.h"
#include "regard/model_spec.h"
#include "regard/workspace.h"

namespace regard {

class Norm;
class StepPlan;
class TensorReader;
struct RowSplit;

/// What a call has to do at least.
struct ModelCost {
  double operations = 0;  ///< Two a multiply-add, inside the masks.
  double bytes = 0;       ///< Weights, keys and values, each read once.
};

/// A call that was left because its caller said so: not a mistake of anyone, hence no Error.
class Cancelled : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The model that a ModelSpec describes, with its weights: token ids -> logits. Activations are f32.
///
/// Thread safety: several threads may call const methods at once, each with a workspace and caches of its own. Over
/// ranks one thread at a time calls them, as the communicators ask.
class Model {
 public:
  /// Loads and packs all weights; with ranks, what this one computes: its heads, and its columns of the MLPs. All ranks
  /// then make the same calls, and all get the logits. Throws Error for a checkpoint that is not a whole model of a
  /// known family, and for tensors that the model would leave out.
  [[nodiscard]] static Model load(const Checkpoint& checkpoint, const Threads& threads, const Ranks& ranks = Ranks());
  /// The same of a spec that is the checkpoint's but for choices that tensors do not depend on, as
  /// ModelSpec::with_context_length.
  [[nodiscard]] static Model load(const Checkpoint& checkpoint, const ModelSpec& spec, const Threads& threads,
                                  const Ranks& ranks = Ranks());
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  [[nodiscard]] const ModelSpec& spec() const { return spec_; }
  [[nodiscard]] const Ranks& ranks() const { return ranks_; }
  [[nodiscard]] const Attention& attention(int64_t layer) const;
  /// Bytes of this rank's weight matrices.
  [[nodiscard]] int64_t bytes() const;

  /// The cost of running `tokens` tokens after `history` cached ones of one sequence, with the last one's logits and
  /// caches of that type.
  [[nodiscard]] ModelCost cost(int64_t history, int64_t tokens, DType cache_dtype = DType::f32) const;

  /// One cache a layer, each slot with memory of its own: contiguous, and a ring or chunk where the layer has a window
  /// or chunk. `options.pages` has to be 0. With ranks, this one's part of them.
  [[nodiscard]] std::vector<KvCache> make_caches(const KvCacheOptions& options) const;
  /// One paged cache a layer, which together take no more than so many bytes: all layers the same number of pages, but
  /// none more than its slots can need, which is less with windows and chunks. With ranks, this one's part of them,
  /// with as many pages as fit on the rank that is given least; collective. Throws Error, on all ranks, if that is less
  /// than a page for each slot, or, in a layer with a window or chunk, than one sequence needs. `options.pages` has to
  /// be 0.
  [[nodiscard]] std::vector<KvCache> make_paged_caches(const KvCacheOptions& options, int64_t bytes) const;

  /// Forgets the tokens of a sequence from `length` on, in every layer, as KvCache::truncate does; with ranks `slot`
  /// and `length` are those of the whole sequence.
  void truncate(std::span<KvCache> caches, int64_t slot, int64_t length) const;

  /// Which tokens' logits a call computes.
  enum class Logits : uint8_t { last_of_each_span, all };
  struct ForwardOptions {
    Logits logits = Logits::last_of_each_span;
    std::span<const ConstTensorView> active_masks = {};  ///< As AttentionInput::active_masks, for tokens that branch.
    /// Where to write what the layers hand on, f32 [layers + 1, tokens, hidden_size]: the embedding's rows, and then
    /// the rows that each layer leaves, before the final norm. None: nowhere.
    TensorView hidden_states = {};
    /// Asked before each layer, on the caller's thread: true leaves the call, which throws Cancelled. One rank only:
    /// others would wait for one that leaves.
    std::function<bool()> cancelled = {};
  };
  /// Runs packed tokens through the model, appending to the caches. Returns logits [rows, vocab_size] in f32, rows in
  /// order of the tokens; they live until the workspace's next use. Throws Error, before a cache changes, for token ids
  /// outside the vocabulary, for `cancelled` over ranks and for what Attention::forward refuses. Throws Cancelled where
  /// `cancelled` says so; then the layers before that one hold the tokens of the call and the others do not, so that
  /// the slots of its spans have to be cleared (KvCache::truncate to 0, or ModelCache::close) before they are used.
  [[nodiscard]] ConstTensorView forward(std::span<const int32_t> tokens, std::span<const Span> spans,
                                        std::span<KvCache> caches, const ForwardOptions& options,
                                        Workspace& workspace) const;

 private:
  struct Layer;

  Model();
  [[nodiscard]] static std::unique_ptr<const Layer> load_layer(TensorReader& reader, const ModelSpec& spec,
                                                               size_t index, const Threads& threads,
                                                               const Ranks& ranks);
  [[nodiscard]] const Linear& head() const { return spec_.head.tied ? embedding_ : head_; }
  void check_call(std::span<const int32_t> tokens, std::span<KvCache> caches, const ForwardOptions& options) const;
  [[nodiscard]] std::optional<StepPlan> plan_step(int64_t tokens, std::span<const Span> spans,
                                                  std::span<KvCache> caches, const ForwardOptions& options,
                                                  Workspace& workspace) const;
  void run_layers(std::span<const int32_t> tokens, std::span<const Span> spans, std::span<KvCache> caches,
                  const ForwardOptions& options, TensorView hidden, Workspace& workspace) const;
  void embed(std::span<const int32_t> tokens, const RowSplit& split, const Threads& threads) const;
  void run_layer(const Layer& layer, AttentionInput& input, std::optional<StepPlan>& plan, const RowSplit& split,
                 Workspace& workspace) const;
  [[nodiscard]] ConstTensorView logits_of(ConstTensorView hidden, std::span<const Span> spans, Logits logits,
                                          Workspace& workspace) const;
  [[nodiscard]] RowSplit split_rows(TensorView hidden, std::span<const Span> spans, std::span<KvCache> caches,
                                    std::span<const ConstTensorView> active_masks, Workspace& workspace) const;
  void gather_rows(const RowSplit& split, TensorView hidden) const;

  ModelSpec spec_;
  Ranks ranks_;
  Linear embedding_;
  Linear head_;  // empty where the embedding is the head
  std::unique_ptr<const Norm> norm_;
  std::vector<std::unique_ptr<const Layer>> layers_;
};

}  // namespace regard
