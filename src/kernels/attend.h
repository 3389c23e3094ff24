#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/panel.h"
#include "regard/interval.h"
#include "regard/tensor.h"
#include "regard/threads.h"
#include "regard/workspace.h"

namespace regard::kernels {

/// The keys, or the values, of all pages of a cache: a panel for each page and KV head.
struct KvPanels {
  PanelType type = PanelType::f32;
  const std::byte* data = nullptr;
  const float* scales = nullptr;   ///< By head, page and token: keys' multiply scores, values' weights; or null
  const float* factors = nullptr;  ///< [kv_heads][width, padded to whole tiles]: what each element is multiplied by.
  int64_t head_bytes = 0;          ///< From one KV head's panel of a page to the next.
  int64_t page_bytes = 0;          ///< From one page's panel of a head to the next.
  int64_t head_scales = 0;         ///< Scales from one head to the next; page_tokens from one page to the next.
};

/// The cached keys and values of one sequence in one layer. A page holds page_tokens positions, a divisor or a multiple
/// of kBlock and a multiple of kTile: for each KV head a key panel [page_tokens/16][head_dim][16], and a value panel
/// [v_head_dim/16][page_tokens][16].
struct KvPages {
  KvPanels keys;
  KvPanels values;
  int64_t page_tokens = 0;         ///< A power of two.
  int page_shift = 0;              ///< Its logarithm: divisions would take 3 % of a decode from short pages.
  const int32_t* table = nullptr;  ///< The places of the sequence's pages first_page..first_page+page_count-1.
  int64_t first_page = 0;
  int64_t page_count = 0;

  [[nodiscard]] bool holds(int64_t position) const {
    const int64_t page = position >> page_shift;
    return page >= first_page && page < first_page + page_count;
  }
  [[nodiscard]] int64_t place_of(int64_t position) const { return table[(position >> page_shift) - first_page]; }
  [[nodiscard]] int64_t offset_of(int64_t position) const { return position & (page_tokens - 1); }
};

/// What all rows of a call have in common.
struct AttendShape {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  float scale = 1.0F;            ///< Multiplies the scores.
  float soft_cap = 0.0F;         ///< 0: off.
  const float* sinks = nullptr;  ///< One logit per query head, or none [MATH-6].
};

/// A run of query tokens of one sequence.
struct AttendSpan {
  KvPages kv;
  int64_t first_token = 0;  ///< Index into the packed tokens.
  int64_t count = 0;
  /// Where tokens of the span see different keys at the same position, as the branches of a token tree do: what each
  /// token's sequence holds from tail_start on, a multiple of kTile, in pages of kTile. Null: all see kv.
  const KvPages* tails = nullptr;  ///< [count]
  int64_t tail_start = 0;
};

struct AttendCall {
  AttendShape shape;
  std::span<const AttendSpan> spans;
  DType dtype = DType::f32;            ///< Of queries and out: f32, bf16 or f16
  const std::byte* queries = nullptr;  ///< [tokens][heads][head_dim], rotated and normalised
  const Interval* visible = nullptr;   ///< [tokens]: the key positions each token sees
  std::byte* out = nullptr;            ///< [tokens][heads][v_head_dim]
  float* lse = nullptr;                ///< [tokens][heads], or null: log of the sum of exp(scores), sink included
};

/// How a call is cut into work for threads.
struct AttendWork {
  /// Rows of one span against one KV head: what needs nothing from others.
  struct Unit {
    const AttendSpan* span;
    int64_t kv_head;
    int64_t first_token;
    int64_t tokens;
    int64_t first_block;  ///< Key blocks that any row sees, as positions / kBlock.
    int64_t block_count;
    int64_t first_partial;  ///< Of the partials in shared memory, when units are split.
  };
  /// What a thread takes at a time: a unit, or some of its blocks.
  struct Piece {
    size_t unit;
    int64_t first_block;
    int64_t block_count;
  };
  std::vector<Unit> units;
  std::vector<Piece> pieces;
  /// Where units are split, their blocks go in rounds of so many, whose partials are merged into that of the unit's
  /// first block before the next round.
  int64_t round_blocks = 1;

  /// The place of the partial of a unit's `index`-th block.
  [[nodiscard]] int64_t partial_of(const Unit& unit, int64_t index) const {
    return unit.first_partial + (index == 0 ? 0 : 1 + (index - 1) % round_blocks);
  }
};

/// Memory that calls reuse; it grows to what the largest call needs and stays.
class AttendScratch {
 public:
  /// At least `count` floats of thread `thread`.
  [[nodiscard]] float* of_thread(int thread, size_t count);
  /// At least `count` floats that all threads share.
  [[nodiscard]] float* shared(size_t count);
  void reserve(int threads, size_t count_per_thread);

  AttendWork work;

 private:
  std::vector<Buffer> threads_;
  Buffer shared_;
};

/// What attention over some of the keys gives before it is finished, to be merged with what others give: for every row
/// the largest score, the sum of weights relative to it, and the weighted values. [tokens][heads][v_head_dim + 2]
[[nodiscard]] constexpr int64_t partial_numbers(const AttendShape& shape) { return shape.v_head_dim + 2; }

/// Attention over the visible keys of `call`, unfinished: sinks and outputs play no part. `partials` has `sets` of
/// partials: one, or, where each block of kBlock keys is to stay by itself, as many as the blocks that any row sees,
/// from position 0 on.
void attend_partials(const AttendCall& call, int64_t sets, float* partials, AttendScratch& scratch,
                     const Threads& threads, const WorkspaceOptions& options = {});

/// Merges sets of partials, in their order, and finishes them: outputs and log-sum-exps of `call`, sinks included. Of
/// the call's keys only what all share is used; its intervals tell which rows see nothing.
void finish_partials(const AttendCall& call, std::span<const float* const> sets, AttendScratch& scratch,
                     const Threads& threads, const WorkspaceOptions& options = {});

/// Softmax attention over the visible keys of every row, with the learned sink in the denominator. Rows that see
/// nothing give zeros. Bits depend on the row's own query, keys and interval only.
void attend(const AttendCall& call, AttendScratch& scratch, const Threads& threads,
            const WorkspaceOptions& options = {});

}  // namespace regard::kernels
