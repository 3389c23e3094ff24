#pragma once

#include <cstdint>
#include <vector>

#include "regard/attention_config.h"
#include "regard/dtype.h"
#include "regard/parallel.h"

namespace regard {

/// Consecutive tokens of one sequence.
struct TokenRun {
  int64_t first = 0;  ///< Position of the first in its sequence.
  int64_t count = 0;
  int64_t row = 0;          ///< The row of decode whose caches hold the sequence.
  bool is_skipped = false;  ///< Tokens that belong to no sequence: a span's slot is -1.
  int64_t prefix = 0;       ///< How many of the tokens, from the first on, see each other: Span::prefix.
};

/// Which of a call's keys and values caches keep for later calls.
enum class KeptTokens : uint8_t {
  none,     ///< There is no cache.
  visible,  ///< Those that later tokens may see: a ring, chunk or paged cache.
  all,      ///< A contiguous cache.
};

/// One call of a layer, as far as it matters for what ranks send. Its tokens do not branch.
struct LayerCall {
  AttentionConfig attention;
  std::vector<TokenRun> runs;
  DType hidden = DType::f32;  ///< Type of the hidden states.
  DType cache = DType::f32;   ///< Type of the cached keys and values; 8-bit and 4-bit ones with a scale per token.
  KeptTokens kept = KeptTokens::visible;
  int64_t page_size = 1;  ///< Of the cache: what is visible is kept in whole pages.
};

/// Payload bytes that one rank sends to others in one call of a layer.
struct RankTraffic {
  int64_t entry = 0;        ///< Hidden states that the other ranks of the row lack (sequence parallel).
  int64_t norms = 0;        ///< Sums for norms over all heads.
  int64_t keys_values = 0;  ///< Keys and values for other rows (context parallel), and for ranks that keep them.
  int64_t prior = 0;        ///< Keys and values from caches, for those that compute what comes after.
  int64_t queries = 0;      ///< Queries for ranks with the same KV head (flash decoding).
  int64_t partials = 0;     ///< Partial results of attention for them.
  int64_t sums = 0;         ///< Partial sums of the output projection.
  int64_t output = 0;       ///< Finished sums, inside the row or between rows; before the sum in dispatch AG_AR.
  int64_t agreement = 0;    ///< Whether this rank can take the call, where ranks share sequences.

  [[nodiscard]] int64_t total() const {
    return entry + norms + keys_values + prior + queries + partials + sums + output + agreement;
  }
  friend bool operator==(const RankTraffic&, const RankTraffic&) = default;
};

struct LayerTraffic {
  std::vector<RankTraffic> ranks;      ///< [tp]
  std::vector<int64_t> between_hosts;  ///< [tp] of each rank's bytes, those for ranks of other hosts.
  int64_t rounds = 0;                  ///< Exchanges one after the other.
  int64_t rounds_between_hosts = 0;    ///< Those of them in which groups of ranks span hosts.
  int64_t messages = 0;                ///< That a rank sends in them, at most.

  [[nodiscard]] int64_t total() const;  ///< Of all ranks.
  [[nodiscard]] int64_t most_of_a_rank() const;
};

/// What ranks send in a call of prefill, or of decode: what Communicator::bytes_sent counts in a call of
/// Attention::forward, byte for byte (but for one byte to each other rank by which ranks that share sequences agree
/// that they take a call). `ranks_per_host` ranks in a row share a host; the last one may have fewer. A call's spans of
/// ParallelConfig::prefill_tokens and more are prefill, where the config spreads the two differently; the bytes of both
/// add up. Throws Error for a config that AttentionConfig::validated refuses or that is so large that no model has it,
/// degrees that do not divide tp_degree, ranks_per_host below 1, or runs out of range.
[[nodiscard]] LayerTraffic prefill_traffic(const LayerCall& call, const ParallelConfig& config,
                                           int64_t ranks_per_host = 1);
[[nodiscard]] LayerTraffic decode_traffic(const LayerCall& call, const ParallelConfig& config,
                                          int64_t ranks_per_host = 1);

}  // namespace regard
