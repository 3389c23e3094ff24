#pragma once

#include <rapidcheck.h>

#include <iosfwd>
#include <vector>

#include "regard/attention.h"
#include "support/random.h"

namespace regard::test {

// A random layer: everything that a config can ask for, in every combination.
struct LayerCase {
  AttentionConfig config;
  WeightType qkv_type = WeightType::f32;
  WeightType output_type = WeightType::f32;
  bool reorders_rows = false;  // of the query and key projections
  DType hidden_dtype = DType::f32;
  DType cache_dtype = DType::f32;
  KvStorage storage = KvStorage::contiguous;  // a ring or chunk cache only where there is a window or chunk
  int64_t page_size = 0;
  KvScaling scaling = KvScaling::per_token;  // any other: of given scales
  uint64_t seed = 0;                         // of the numbers
};
std::ostream& operator<<(std::ostream& out, const LayerCase& c);

// What a property wants of its layers.
struct LayerWishes {
  bool bidirectional = true;  // whether some layers may be
  int64_t longest_text = 64;  // windows and chunks are about as long
  bool small = false;         // few and narrow heads, for long texts
};
rc::Gen<LayerCase> layer_cases(LayerWishes wishes);
// Draws a storage that the case's mask allows: for cases whose mask was changed.
void draw_storage(LayerCase& c);

// The layer of a case, with its weights.
class Layer {
 public:
  explicit Layer(const LayerCase& c);
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  [[nodiscard]] const AttentionConfig& config() const { return attention_->config(); }
  [[nodiscard]] const AttentionWeights& weights() const { return weights_; }
  [[nodiscard]] const Attention& attention() const { return *attention_; }
  [[nodiscard]] DType hidden_dtype() const { return case_.hidden_dtype; }
  [[nodiscard]] DType cache_dtype() const { return case_.cache_dtype; }
  // A cache as the case says, or a contiguous one.
  [[nodiscard]] KvCache make_cache(int64_t slots, int64_t capacity, int64_t speculation_length = 0) const;
  [[nodiscard]] KvCache make_contiguous_cache(int64_t slots, int64_t capacity) const;
  // One rank's part of such a cache.
  [[nodiscard]] KvCache make_cache_of(const Attention& attention, int64_t slots, int64_t capacity,
                                      int64_t speculation_length = 0) const;
  // Random hidden states [tokens, input_size]; the `index`-th text of this layer.
  [[nodiscard]] Tensor text(int64_t tokens, uint64_t index = 0) const;

 private:
  [[nodiscard]] KvCacheOptions cache_options(int64_t slots, int64_t capacity) const;
  WeightView add_matrix(WeightType type, int64_t rows, int64_t columns, Random& random);
  void add_projections(Random& random);
  void add_norms(Random& random);

  LayerCase case_;
  std::vector<std::vector<std::byte>> bytes_;
  AttentionWeights weights_;
  std::optional<Attention> attention_;
};

}  // namespace regard::test
