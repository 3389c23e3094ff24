#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "regard/dtype.h"
#include "regard/mask.h"
#include "regard/tensor.h"
#include "regard/threads.h"

namespace regard {

namespace kernels {
struct KvPages;
}

class BlockTables;

/// A run of consecutive tokens of one sequence, in a call's packed tokens. A slot of -1 marks tokens that belong to no
/// sequence: they see nothing, their output is zero and nothing is stored.
struct Span {
  int64_t slot = 0;            ///< Sequence slot of the cache, or -1.
  int64_t first_position = 0;  ///< Position in the sequence of the first token, from 0 on.
  int64_t count = 0;           ///< Tokens, 1 or more.
  /// How many of the tokens, from the first on, see each other under a causal mask [MASK-27]: those of a prefix-LM's
  /// prompt, or of an image. 0: none.
  int64_t prefix = 0;

  /// The position after the prefix.
  [[nodiscard]] int64_t prefix_end() const { return first_position + prefix; }
};

/// What a cache has to know of its layer. An AttentionConfig converts to it, so that `KvCache::paged(options, config)`
/// makes a layer's cache.
struct KvSpec {
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;    ///< Width of a key head.
  int64_t v_head_dim = 0;  ///< Width of a value head; 0: head_dim.
  Mask mask = {};          ///< Tells which tokens later ones still see.

  friend bool operator==(const KvSpec&, const KvSpec&) = default;
};

/// Where the pages of a slot come from, and which it keeps.
enum class KvStorage : uint8_t {
  contiguous,  ///< Its own, one after the other, from the start; it keeps all tokens.
  ring,        ///< Enough of its own for the layer's window [KV-25]: what left the window is written over.
  chunk,       ///< Enough of its own for the layer's chunk [KV-26].
  paged,       ///< A pool that all slots share. A layer with a window or chunk gives back what no token sees any more.
};

/// The storage without a pool that keeps just what later tokens see: a ring under a window, else chunk under chunks,
/// else contiguous.
[[nodiscard]] KvStorage bounded_storage(const Mask& mask);

/// What shares a scale of an 8-bit or 4-bit cache [KV-43].
enum class KvScaling : uint8_t {
  /// A token of a head. It is computed as the token is stored: the element of largest magnitude becomes the type's
  /// largest number, or -8 for i4; an infinity or a NaN makes all of it NaN.
  per_token,
  per_tensor,   ///< All of keys, or of values; given, as are the next two.
  per_head,     ///< A KV head.
  per_channel,  ///< An element of the head, in all heads or in each.
};

/// How keys, or values, are stored.
struct KvFormat {
  DType dtype = DType::f32;  ///< f32, bf16, f16, f8_e4m3, f8_e5m2, i8 or i4
  KvScaling scaling = KvScaling::per_token;
  /// Given scales: [1], [kv_heads], or [head_dim] or [kv_heads * head_dim]; empty: 1, which is the reference's
  /// direct_cast [KV-41]. A number is stored as number / scale, rounded to nearest even, and the type's largest where
  /// it is larger [KV-42]. Other types have no scales.
  std::vector<float> scales = {};

  /// The format whose given scales just hold these numbers [tokens, kv_heads, head_dim], f32. Throws Error for types
  /// without scales, for per_token, or for numbers that are not finite.
  [[nodiscard]] static KvFormat fitted(DType dtype, KvScaling scaling, ConstTensorView sample);
};

/// What a cache holds.
struct KvCacheOptions {
  int64_t slots = 1;               ///< Sequences.
  int64_t capacity = 0;            ///< Tokens that a sequence may come to, 1 or more: it has to be given.
  DType dtype = DType::f32;        ///< Of keys and values [KV-5].
  std::optional<KvFormat> keys;    ///< Of keys alone; none: dtype, with scales per token.
  std::optional<KvFormat> values;  ///< Of values alone.
  /// Tokens a page: 16, 32, 64, 128 or 256. 0: in contiguous caches 256, or less where that holds the capacity,
  /// else 32.
  int64_t page_size = 0;
  int64_t pages = 0;               ///< Paged: pages of the pool; 0: as many as all slots together can need.
  int64_t speculation_length = 0;  ///< Tokens that a layer with a window or chunk may take back.
};

/// The keys and values of one layer's sequences. Keys are stored rotated and normalised [POS-2]. A sequence is the
/// tokens 0..length-1; appending at a position below its length replaces what follows, so that position 0 starts anew.
/// Memory is reserved at once but only touched as it is written. A token's attention has the same bits whatever the
/// storage and page size.
///
/// Thread safety: several threads may call const methods, and attend, at once, as long as none changes the cache.
/// Caches have nothing in common: each may have a thread of its own.
class KvCache {
 public:
  /// Tokens that Attention::forward appends at once where it may: what rings have spare room for.
  static constexpr int64_t kTokensAtOnce = 512;

  /// Throws Error for sizes, types or scales out of range, and for a ring or chunk without a window or chunk.
  KvCache(KvStorage storage, const KvCacheOptions& options, const KvSpec& spec);
  [[nodiscard]] static KvCache contiguous(const KvCacheOptions& options, const KvSpec& spec);
  [[nodiscard]] static KvCache ring(const KvCacheOptions& options, const KvSpec& spec);
  [[nodiscard]] static KvCache chunk(const KvCacheOptions& options, const KvSpec& spec);
  [[nodiscard]] static KvCache paged(const KvCacheOptions& options, const KvSpec& spec);

  /// Pages that a paged cache has unless `options.pages` says otherwise: as many as all its slots can need, and, in
  /// layers that give pages back, what a call appends beyond that. Throws Error as the constructor does.
  [[nodiscard]] static int64_t pages_needed(const KvCacheOptions& options, const KvSpec& spec);

  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  [[nodiscard]] KvStorage storage() const;
  [[nodiscard]] int64_t slots() const;
  [[nodiscard]] int64_t capacity() const;
  [[nodiscard]] const KvFormat& key_format() const;
  [[nodiscard]] const KvFormat& value_format() const;
  [[nodiscard]] int64_t num_key_value_heads() const;
  [[nodiscard]] int64_t head_dim() const;
  [[nodiscard]] int64_t v_head_dim() const;
  /// Bytes that one token takes, K and V of all heads.
  [[nodiscard]] int64_t bytes_per_token() const;

  /// Tokens of a slot's sequence.
  [[nodiscard]] int64_t length(int64_t slot) const;
  /// The first position that the slot still holds; windows and chunks give older ones back.
  [[nodiscard]] int64_t first_held(int64_t slot) const;

  /// The first position that the token at `position` sees under the layer's mask, as far as this storage gives others
  /// back: always 0 in a contiguous cache.
  [[nodiscard]] int64_t first_seen(int64_t position) const;

  /// The first position that a slot of `length` tokens goes on to hold: what later tokens may see, and those taken
  /// back, in whole pages.
  [[nodiscard]] int64_t first_kept(int64_t length) const;

  /// Checks that all spans can be appended, without changing anything, if they come in order and `tokens_at_once` at a
  /// time, with a `trim` after each. What would cut a prefix ends before it; a longer prefix comes at once. Throws
  /// Error for a slot that does not exist, one that comes twice, a position beyond the stored length (a hole) or before
  /// what is held, a token past the capacity, or too few free pages.
  void check(std::span<const Span> spans, int64_t tokens_at_once = kTokensAtOnce) const;
  /// How many free pages more the same spans would need; 0 if they fit. Throws Error for what `check` refuses
  /// otherwise.
  [[nodiscard]] int64_t missing_pages(std::span<const Span> spans, int64_t tokens_at_once = kTokensAtOnce) const;
  /// Stores keys [count, kv_heads, head_dim] and values [count, kv_heads, v_head_dim], both f32, as one span's tokens.
  /// A slot of -1 is ignored. Throws Error, before anything is written, where `check` of this span, all at once, would,
  /// or where shapes differ.
  void append(const Span& span, ConstTensorView keys, ConstTensorView values, const Threads& threads = Threads(1));
  /// Gives back the pages that no later token can see; Attention::forward does so by itself, but see
  /// BlockTables::leave_trim_to_owner.
  void trim(int64_t slot);
  /// Forgets the tokens from `length` on, and with 0 frees the slot. Throws Error if the slot holds fewer, or if the
  /// next token would need one that is not held any more.
  void truncate(int64_t slot, int64_t length);
  /// Of the tokens from `first_position` on keeps only those with these indices, counted from there, moves them
  /// together and forgets the rest: the accepted tokens of a draft or of a token tree [KV-9]. Throws Error, before
  /// anything moves, for indices that do not rise or are not stored, where the next token would need one that is not
  /// held any more, and where the pool lacks pages for copies of shared ones.
  void accept(int64_t slot, int64_t first_position, std::span<const int64_t> indices);
  /// Throws Error where `accept` would, and changes nothing: for several layers that accept the same or none.
  void check_accept(int64_t slot, int64_t first_position, std::span<const int64_t> indices) const;

  /// Makes `to`, which has to be empty, a sequence with the first `length` tokens of `from`. Pools share the pages, and
  /// whoever writes to a shared page first gets a copy; others copy. Throws Error for a slot that is in use, tokens
  /// that are not held, or no free page.
  void fork(int64_t from, int64_t to, int64_t length);

  /// A copy of tokens first..first+count-1 of a slot as f32: keys [count, kv_heads, head_dim] and values [count,
  /// kv_heads, v_head_dim]. Throws Error if they are not stored.
  [[nodiscard]] std::pair<Tensor, Tensor> read(int64_t slot, int64_t first, int64_t count) const;
  /// The same, and the other way round, with the bits that are stored: for saving a sequence, see saved_sequence.h, and
  /// for moving tokens between caches.
  struct StoredTokens {
    Tensor keys;          ///< u8 [count, kv_heads, bytes of head_dim elements]
    Tensor values;        ///< u8 [count, kv_heads, bytes of v_head_dim elements]
    Tensor key_scales;    ///< f32 [count, kv_heads], or empty
    Tensor value_scales;  ///< f32 [count, kv_heads], or empty
  };
  [[nodiscard]] StoredTokens read_stored(int64_t slot, int64_t first, int64_t count) const;
  /// As `append`, of tokens as they are stored. Throws Error also for tokens of another form.
  void append_stored(const Span& span, const StoredTokens& tokens);
  /// Makes an empty slot a sequence that holds these tokens from `first` on; of a page of which only the end is given,
  /// nothing is held. Throws Error where `append` would, and where the next token would see what is not held.
  void restore_stored(int64_t slot, int64_t first, const StoredTokens& tokens);

  /// The pages behind the slots, for prefix caches, schedulers and engines with block tables of their own: see
  /// block_table.h.
  [[nodiscard]] BlockTables& block_tables();
  [[nodiscard]] const BlockTables& block_tables() const;

  /// One KV head of a token as it is stored (key, its scale, value, its scale), for moving tokens one by one:
  /// stored_bytes() bytes. `extend` makes a slot's tokens from `first` on those up to `length`, as `append` does and
  /// with its errors; what they hold is unknown until `put_stored` brings it, in any order. For the library's own use.
  [[nodiscard]] int64_t stored_bytes() const;
  void get_stored(int64_t slot, int64_t position, int64_t head, std::byte* to) const;
  void put_stored(int64_t slot, int64_t position, int64_t head, const std::byte* from);
  void extend(int64_t slot, int64_t first, int64_t length);

  /// What the kernels read; for the library's own use.
  [[nodiscard]] kernels::KvPages view(int64_t slot) const;

 private:
  friend class BlockTables;

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace regard
