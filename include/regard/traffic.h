#pragma once

#include <cstdint>
#include <vector>

#include "regard/dtype.h"
#include "regard/mask.h"
#include "regard/parallel.h"

namespace regard {

/// What decides how much an attention layer computes, stores and sends.
struct LayerShape {
  int64_t hidden_size = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  Mask mask;

  /// Of a validated config.
  [[nodiscard]] static LayerShape of(const AttentionConfig& config);
  /// Throws Error for sizes below 1 or so large that no model has them, and for KV heads that do not divide the heads.
  void check() const;
  /// Numbers that a token's key and value have in one KV head.
  [[nodiscard]] int64_t kv_width() const { return head_dim + v_head_dim; }

  friend bool operator==(const LayerShape&, const LayerShape&) = default;
};

/// Consecutive tokens of one sequence.
struct TokenRun {
  int64_t first = 0;  ///< Position of the first in its sequence.
  int64_t count = 0;
  int64_t row = 0;  ///< In decode: the row of ranks whose caches hold the sequence.
};

/// One call of a layer, as far as it matters for what ranks send.
struct LayerCall {
  LayerShape shape;
  std::vector<TokenRun> runs;
  DType hidden = DType::f32;  ///< Type of the hidden states.
  DType cache = DType::f32;   ///< Type of the cached keys and values.
  /// In deterministic mode, how many sums each column of the mesh holds: the nodes of the sum tree that cover its
  /// heads. Empty: one each.
  std::vector<int64_t> sums_of_column;
};

/// Payload bytes that one rank sends to others in one call of a layer.
struct RankTraffic {
  int64_t entry = 0;        ///< Hidden states that the other ranks of the row lack (sequence parallel).
  int64_t keys_values = 0;  ///< Keys and values for other rows (context parallel).
  int64_t queries = 0;      ///< Queries for ranks with the same KV head (flash decoding).
  int64_t partials = 0;     ///< Partial results of attention for them.
  int64_t sums = 0;         ///< Partial sums of the output projection.
  int64_t output = 0;       ///< Finished sums, inside the row or between rows; before the sum in dispatch AG_AR.

  [[nodiscard]] int64_t total() const { return entry + keys_values + queries + partials + sums + output; }
  friend bool operator==(const RankTraffic&, const RankTraffic&) = default;
};

struct LayerTraffic {
  std::vector<RankTraffic> ranks;  ///< [tp]
  int64_t rounds = 0;              ///< Exchanges one after the other.
  int64_t messages = 0;            ///< That a rank sends in them, at most.

  [[nodiscard]] int64_t total() const;  ///< Of all ranks.
  [[nodiscard]] int64_t most_of_a_rank() const;
};

/// What ranks send in a call of prefill, or of decode, by the formulas in src/parallel/traffic.cc. Counted are the
/// calls' own tokens: keys and values of a prefix that caches hold already are not sent again, and every row's cache is
/// taken to keep what its later queries may see. Throws Error for shapes that check() refuses, degrees that do not
/// divide tp_degree, or runs out of range.
[[nodiscard]] LayerTraffic prefill_traffic(const LayerCall& call, const ParallelConfig& config);
[[nodiscard]] LayerTraffic decode_traffic(const LayerCall& call, const ParallelConfig& config);

}  // namespace regard
