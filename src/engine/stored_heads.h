#pragma once

#include <cstdint>
#include <vector>

#include "regard/attention.h"

namespace regard {

// The KV heads of a layer, of which the caches of ranks have parts; a cache by itself has all.
class StoredHeads {
 public:
  explicit StoredHeads(const KvCache& cache);
  // Throws Error where a rank's cache has only some of the sequences, or of their tokens.
  explicit StoredHeads(const Attention& attention);

  [[nodiscard]] int64_t count() const { return count_; }
  // What is stored of all heads, [tokens, count, ...], of what each rank's cache has, [tokens, its heads, ...]: on rank
  // 0; others get an empty tensor. Collective.
  [[nodiscard]] Tensor all_of(const Tensor& own) const;
  // What this rank's cache has of all heads, of tokens from `first` on; of heads of zeros, zeros. An empty view gives
  // an empty tensor.
  [[nodiscard]] Tensor own_of(ConstTensorView all, int64_t first) const;

 private:
  using Heads = std::vector<int64_t>;

  int64_t count_;
  Heads own_;                 // those of this rank's cache, in its order; -1: a head of zeros
  std::vector<Heads> given_;  // by rank: those that it gives, each head by one rank
  Communicator* world_ = nullptr;
};

}  // namespace regard
