#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/drafter.h"
#include "regard/model.h"

namespace regard {

// What a smaller model of the same vocabulary finds most likely (Leviathan et al. 2023, "Fast Inference from
// Transformers via Speculative Decoding", with greedy guesses: a guess counts where the larger model draws it, too).
class ModelDrafter : public Drafter {
 public:
  // Guesses up to `longest` tokens below `vocabulary`, the larger model's. Texts grow to `cache.capacity` tokens; where
  // the smaller model's context is shorter, it falls silent. Model and workspace outlive it.
  ModelDrafter(const Model& model, int64_t longest, int64_t vocabulary, const KvCacheOptions& cache,
               Workspace& workspace);

  void extend(std::span<const int32_t> tokens) override;
  [[nodiscard]] std::vector<int32_t> draft(int64_t room) override;
  void judge(int64_t drafted, int64_t accepted) override { length_.judge(drafted, accepted); }

 private:
  [[nodiscard]] int32_t next_of(std::span<const int32_t> tokens);

  const Model& model_;
  Workspace& workspace_;
  DraftLength length_;
  int64_t vocabulary_;  // of both models
  std::vector<KvCache> caches_;
  std::vector<int32_t> text_;
  int64_t cached_ = 0;       // tokens whose keys and values are there: of the text, then of the last draft
  bool understands_ = true;  // the model has all tokens of the text
};

}  // namespace regard
