#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "regard/gqa.h"

namespace regard {

/// The heads of one layer, cut for `tp` ranks. Pure numbers: the same on every rank.
class GqaSharding {
 public:
  /// Throws Error for counts below 1 or kv_heads that do not divide heads. A requested REPLICATE that does not fit (tp
  /// is no multiple of kv_heads) becomes CONVERT, unless kv_heads is a multiple of tp: then KV heads are just split,
  /// and nothing is replicated or converted [PROJ-2]..[PROJ-4], [GAP-2].
  GqaSharding(int64_t heads, int64_t kv_heads, int64_t tp, GQA requested = GQA::REPLICATE_TO_TP_DEGREE);

  [[nodiscard]] int64_t tp() const { return tp_; }
  [[nodiscard]] GQA strategy() const { return strategy_; }
  /// Whether KV heads are only split, so that both strategies come to the same.
  [[nodiscard]] bool splits() const { return padded_kv_heads() == kv_heads_; }
  [[nodiscard]] int64_t heads() const { return heads_; }
  [[nodiscard]] int64_t kv_heads() const { return kv_heads_; }
  [[nodiscard]] int64_t padded_heads() const { return static_cast<int64_t>(q_sources_.size()); }
  [[nodiscard]] int64_t padded_kv_heads() const { return static_cast<int64_t>(kv_sources_.size()); }
  /// Of one rank [PROJ-6].
  [[nodiscard]] int64_t local_heads() const { return padded_heads() / tp_; }
  [[nodiscard]] int64_t local_kv_heads() const { return padded_kv_heads() / tp_; }
  [[nodiscard]] int64_t group_size() const { return local_heads() / local_kv_heads(); }
  /// Ranks that hold the same KV head; 1 where none is replicated as a whole [PAR-50].
  [[nodiscard]] int64_t kv_copies() const;

  /// The checkpoint's head that each padded head is, -1 for a head of zeros [PROJ-7]..[PROJ-11].
  [[nodiscard]] std::span<const int64_t> q_sources() const { return q_sources_; }
  [[nodiscard]] std::span<const int64_t> kv_sources() const { return kv_sources_; }
  /// Those of the shard-th of tp equal parts [PROJ-14]. Throws Error for a shard out of range.
  [[nodiscard]] std::span<const int64_t> q_heads_of(int64_t shard) const;
  [[nodiscard]] std::span<const int64_t> kv_heads_of(int64_t shard) const;

 private:
  int64_t heads_, kv_heads_, tp_;
  GQA strategy_;
  std::vector<int64_t> q_sources_, kv_sources_;
};

}  // namespace regard
