#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "support/layer_case.h"

// A layer at work on some sequences, in any schedule; what each token got, and how to compare it.
namespace regard::test {

// All that a call returns for one token. Numbers of narrower types as f32, which holds their bits.
struct TokenOutput {
  std::vector<float> hidden;  // [hidden_size]
  std::vector<float> key;     // [kv_heads, head_dim]
  std::vector<float> value;   // [kv_heads, v_head_dim]
  std::vector<float> lse;     // [heads]
};
// Of a call on packed tokens that returned log-sum-exps.
std::vector<TokenOutput> token_outputs(const AttentionOutput& output);
// One call of the layer on packed tokens.
std::vector<TokenOutput> forward(const Layer& layer, KvCache& cache, Workspace& workspace, ConstTensorView hidden,
                                 std::span<const Span> spans, std::span<const ConstTensorView> active_masks = {});
// "" if all bits are equal, else where they are not.
std::string first_difference(std::span<const TokenOutput> ours, std::span<const TokenOutput> theirs);

// A sequence in a slot of a cache; the tokens 0 .. outputs.size()-1 are computed.
struct Sequence {
  int64_t slot = 0;
  Tensor hidden;  // [tokens, input_size]
  std::vector<TokenOutput> outputs;
  int64_t prefix = 0;  // its first so many tokens, which see each other: all in the first step

  [[nodiscard]] int64_t length() const { return hidden.shape()[0]; }
  [[nodiscard]] int64_t done() const { return static_cast<int64_t>(outputs.size()); }
  // Of its next span.
  [[nodiscard]] int64_t next_prefix() const { return done() == 0 ? prefix : 0; }
};

enum class Padding { left, right };

// A layer with its cache and its threads.
class Session {
 public:
  struct Options {
    int64_t slots = 1;
    int64_t capacity = 64;
    int threads = 1;
    bool contiguous = false;  // instead of the storage that the layer's case says
  };
  Session(const Layer& layer, const Options& options);

  // The next tokens of a sequence.
  struct Step {
    Sequence* sequence;
    int64_t tokens;
  };
  // One call on packed tokens.
  void advance(std::span<const Step> steps);
  void advance(Sequence& sequence, int64_t tokens);
  // One call on a padded batch, every step a row.
  void advance_padded(std::span<const Step> steps, Padding padding);

  [[nodiscard]] KvCache& cache() { return cache_; }

 private:
  const Layer& layer_;
  KvCache cache_;
  Workspace workspace_;
};

// A sequence of its own, in one call by one thread.
std::vector<TokenOutput> prefill_at_once(const Layer& layer, const Tensor& hidden, int64_t prefix = 0);

}  // namespace regard::test
