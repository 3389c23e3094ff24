#pragma once

#include <optional>
#include <vector>

#include "layers/attention_shard.h"
#include "layers/hidden_output.h"
#include "layers/stored_parts.h"
#include "parallel/kv_holders.h"
#include "parallel/messages.h"

namespace regard {

// Prefill of one rank where the ranks that compute keys and values are not just those that keep them: rows of ranks
// divide the tokens of each sequence [PAR-32], exchange keys and values, attend, and hand the keys and values to those
// that keep them.
class ContextCall {
 public:
  // `input`: all spans of the call, but the hidden states of this row's tokens only; `chosen`: the spans of the
  // prefill. Each row of decode has so many sequence slots.
  ContextCall(const Attention& attention, const AttentionInput& input, std::span<const size_t> chosen,
              const RankPlace& place, int64_t slots_a_row);
  void run();

 private:
  static constexpr int64_t kAllRows = -1;
  // Positions from..end-1 of a head, as far as they are in the share: what a reader wants and a keeper has.
  struct PriorPart {
    int64_t reader;
    int64_t keeper;
    int64_t head;
    int64_t index;  // among the heads that the reader computes
    TokenShare share;
    int64_t from;
    int64_t end;
  };
  // Some of this rank's KV heads, with their query heads.
  struct HeadRange {
    int64_t first;
    int64_t count;
  };
  // How many given scales each of so many heads has for itself; 0: none, or all heads have the same.
  [[nodiscard]] static int64_t scales_a_head(const KvFormat& format, int64_t heads, int64_t width);
  // A sequence's part in the call.
  struct Sequence {
    size_t span;
    int64_t first_token;              // of the span, among the tokens of the stage
    int64_t keeping_row;              // of decode
    std::optional<int64_t> own_slot;  // in this rank's cache
    std::vector<SpanShare> shares;    // by row: its tokens of the span, perhaps none
    std::vector<int64_t> prior_from;  // by row: the first position before the span that its tokens see
    Interval kept;                    // the span's tokens that caches still want
    Interval seen;                    // positions that this row's tokens see
    int64_t origin = 0;               // the position that the context's position 0 stands for
    KvCache::StoredTokens prior;      // of this rank's heads, from origin to the span
  };

  void find_sequences();
  [[nodiscard]] Sequence sequence_of(size_t span, int64_t first_token) const;
  void check() const;
  void project();
  [[nodiscard]] ConstTensorView normed_rows(ConstTensorView x);
  void place_own_rows();

  // context_keep.cc
  [[nodiscard]] KvFormat format_of_computed(const KvFormat& kept, int64_t width) const;
  void fetch_prior();
  [[nodiscard]] bool wants_prior() const;
  void make_prior(Sequence& sequence) const;
  void send_prior(const Sequence& sequence, std::span<const StoredPart> parts, Messages& messages) const;
  template <class Visit>
  void for_each_prior(const Sequence& sequence, Visit visit) const;
  void fetch_missing_heads();
  void keep();
  [[nodiscard]] std::pair<Tensor, Tensor> kept_rows(const Sequence& sequence) const;

  [[nodiscard]] bool sees(int64_t row, const Sequence& sequence, int64_t offset) const;
  [[nodiscard]] bool wants(int64_t row, const Sequence& sequence, int64_t offset) const;
  template <class Visit>
  void for_each_row_token(int64_t row, int64_t reader, Visit visit) const;
  [[nodiscard]] int64_t token_bytes(HeadRange heads) const;
  void pack_token(int64_t token, HeadRange heads, std::byte* to) const;
  void unpack_token(const std::byte* from, int64_t token, HeadRange heads, const Tensor& keys,
                    const Tensor& values) const;
  [[nodiscard]] std::vector<std::byte> packed(int64_t row, int64_t reader, HeadRange heads) const;
  [[nodiscard]] std::vector<std::byte> room_for(int64_t row, int64_t reader, HeadRange heads) const;
  void unpack(int64_t row, int64_t reader, HeadRange heads, std::span<const std::byte> bytes);
  void exchange_all();
  void attend_while_heads_travel();

  [[nodiscard]] KvCache make_context(HeadRange heads) const;
  [[nodiscard]] KvFormat format_of(const KvFormat& all, int64_t width, HeadRange heads) const;
  void attend(HeadRange heads, const KvCache& context, ElementRange tokens);
  void write_output();

  const Attention& attention_;
  const AttentionShard& shard_;
  const AttentionShard& keeper_;
  const AttentionConfig& config_;
  const AttentionInput& input_;
  const RankPlace& place_;
  Workspace& workspace_;
  KvHolders holders_;
  int64_t slots_a_row_;
  int64_t rank_;
  int64_t row_;
  Mask mask_;
  std::vector<int64_t> decode_rows_;  // by row of prefill: that of decode which this column's rank is in
  std::vector<size_t> chosen_;
  std::vector<Sequence> sequences_;
  std::vector<int64_t> positions_;      // of this row's tokens
  KvFormat key_format_, value_format_;  // the cache's, for the KV heads that this rank computes
  Tensor queries_, attended_;           // [tokens of the row, heads * width]
  Tensor own_keys_, own_values_;
  Tensor keys_, values_;  // [tokens of the stage, KV heads * width]: what is needed of them
  // Kept, but computed by others: by the first place of the head among those kept.
  std::vector<Tensor> missing_keys_, missing_values_;
};

}  // namespace regard
