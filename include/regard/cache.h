#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "regard/attention_config.h"
#include "regard/tensor.h"
#include "regard/threads.h"

namespace regard {

namespace kernels {
struct KvPages;
}

/// A run of consecutive tokens of one sequence, in a call's packed tokens. A slot of -1 marks tokens that belong to no
/// sequence: they see nothing, their output is zero and nothing is stored.
struct Span {
  int64_t slot = 0;            ///< Sequence slot of the cache, or -1.
  int64_t first_position = 0;  ///< Position in the sequence of the first token, from 0 on.
  int64_t count = 0;           ///< Tokens, 1 or more.
};

/// Where a contiguous cache keeps its numbers, and how many. A 0 stands for the default that the comment gives.
struct ContiguousCache {
  int64_t slots = 0;     ///< Sequences; the config's kv_cache_batch_size.
  int64_t capacity = 0;  ///< Tokens a sequence may hold; the config's max_length.
  /// f32, bf16, f16, f8_e4m3, f8_e5m2, i8 or i4; the config's attention_dtype [KV-5]. Types of 8 and 4 bits keep a
  /// scale a token and head, which makes its largest element the type's largest number (-8 for i4); an infinity or a
  /// NaN makes all of it NaN.
  std::optional<DType> dtype;
};

/// The keys and values of one layer's sequences. Keys are stored rotated and normalised [POS-2]. A sequence is the
/// tokens 0..length-1; appending at a position below its length replaces what follows, so that position 0 starts anew.
/// Memory is reserved at once but only touched as it is written.
class KvCache {
 public:
  /// Every slot a contiguous run of memory. Throws Error for sizes or a dtype out of range.
  [[nodiscard]] static KvCache contiguous(const ContiguousCache& options, const AttentionConfig& config);

  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  [[nodiscard]] int64_t slots() const;
  [[nodiscard]] int64_t capacity() const;
  [[nodiscard]] DType dtype() const;
  [[nodiscard]] int64_t num_key_value_heads() const;
  [[nodiscard]] int64_t head_dim() const;
  [[nodiscard]] int64_t v_head_dim() const;
  /// Bytes that one token takes, K and V of all heads.
  [[nodiscard]] int64_t bytes_per_token() const;
  /// Tokens stored in a slot.
  [[nodiscard]] int64_t length(int64_t slot) const;

  /// Checks that all spans can be appended, without changing anything. Throws Error for a slot that does not exist, one
  /// that comes twice, a position beyond the stored length (a hole), or a token past the capacity.
  void check(std::span<const Span> spans) const;
  /// Stores keys [count, kv_heads, head_dim] and values [count, kv_heads, v_head_dim], both f32, as one span's tokens.
  /// A slot of -1 is ignored. Throws Error, before anything is written, where `check` would or where shapes differ.
  void append(const Span& span, ConstTensorView keys, ConstTensorView values, const Threads& threads = Threads(1));
  /// Forgets the tokens from `length` on. Throws Error if the slot holds fewer.
  void truncate(int64_t slot, int64_t length);

  /// A copy of tokens first..first+count-1 of a slot as f32: keys [count, kv_heads, head_dim] and values [count,
  /// kv_heads, v_head_dim]. Throws Error if they are not stored.
  [[nodiscard]] std::pair<Tensor, Tensor> read(int64_t slot, int64_t first, int64_t count) const;

  /// What the kernels read; for the library's own use.
  [[nodiscard]] kernels::KvPages view(int64_t slot) const;

 private:
  struct State;
  explicit KvCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace regard
