#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "regard/attention.h"
#include "regard/checkpoint.h"
#include "regard/model_config.h"
#include "regard/workspace.h"

namespace regard {

class Mlp;
struct RowSplit;

/// What a call has to do at least.
struct ModelCost {
  double operations = 0;  ///< Two a multiply-add, inside the masks.
  double bytes = 0;       ///< Weights, keys and values, each read once.
};

/// The small decoder that makes a checkpoint speak: embedding, layers of attention and SwiGLU MLP between RMS norms,
/// output head. Activations are f32.
class Model {
 public:
  /// Loads and packs all weights; with ranks, what this one computes: its heads, and its columns of the MLPs. All ranks
  /// then make the same calls, and all get the logits. Throws Error for a checkpoint that is not a whole model of a
  /// known family.
  [[nodiscard]] static Model load(const Checkpoint& checkpoint, const Threads& threads, const Ranks& ranks = Ranks());

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const Ranks& ranks() const { return ranks_; }
  [[nodiscard]] const Attention& attention(int64_t layer) const {
    return layers_[static_cast<size_t>(layer)].attention;
  }

  /// The cost of running `tokens` tokens after `history` cached ones of one sequence, with the last one's logits and
  /// caches of that type.
  [[nodiscard]] ModelCost cost(int64_t history, int64_t tokens, DType cache_dtype = DType::f32) const;

  /// One cache a layer, each slot with memory of its own: contiguous, and a ring or chunk where the layer has a window
  /// or chunk. `options.pages` has to be 0. With ranks, this one's part of them.
  [[nodiscard]] std::vector<KvCache> make_caches(const KvCacheOptions& options) const;
  /// One paged cache a layer, which together take no more than so many bytes: all layers the same number of pages, but
  /// none more than its slots can need, which is less with windows and chunks. Throws Error if that is less than a page
  /// for each slot, or, in a layer with a window or chunk, than one sequence needs, and with several ranks.
  /// `options.pages` has to be 0.
  [[nodiscard]] std::vector<KvCache> make_paged_caches(const KvCacheOptions& options, int64_t bytes) const;

  /// Forgets the tokens of a sequence from `length` on, in every layer, as KvCache::truncate does; with ranks `slot`
  /// and `length` are those of the whole sequence.
  void truncate(std::span<KvCache> caches, int64_t slot, int64_t length) const;

  /// Which tokens' logits a call computes.
  enum class Logits : uint8_t { last_of_each_span, all };
  /// Runs packed tokens through the model, appending to the caches. Returns logits [rows, vocab_size] in f32, rows in
  /// order of the tokens; they live until the workspace's next use. Throws Error, before a cache changes, for token ids
  /// outside the vocabulary and for what Attention::forward refuses. `active_masks` are those of AttentionInput, for
  /// tokens that branch.
  [[nodiscard]] ConstTensorView forward(std::span<const int32_t> tokens, std::span<const Span> spans,
                                        std::span<KvCache> caches, Logits logits, Workspace& workspace,
                                        std::span<const ConstTensorView> active_masks = {}) const;

 private:
  struct Layer {
    Attention attention;
    std::vector<float> attention_norm;
    std::vector<float> mlp_norm;
    std::shared_ptr<const Mlp> mlp;
  };

  void run_layers(std::span<const int32_t> tokens, std::span<const Span> spans,
                  std::span<const ConstTensorView> active_masks, std::span<KvCache> caches, TensorView hidden,
                  Workspace& workspace) const;
  [[nodiscard]] RowSplit split_rows(TensorView hidden, std::span<const Span> spans,
                                    std::span<const ConstTensorView> active_masks, std::span<KvCache> caches,
                                    Workspace& workspace) const;
  void gather_rows(const RowSplit& split, TensorView hidden) const;

  ModelConfig config_;
  Ranks ranks_;
  Linear embedding_;
  Linear output_;  // empty where the embedding is the head
  std::vector<float> norm_;
  std::vector<Layer> layers_;
};

}  // namespace regard
