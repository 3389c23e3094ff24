#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "regard/cache.h"

namespace regard {

/// The caches of all layers of a model on one rank, for sequences that come, share prefixes and go. All layers have the
/// same slots; a sequence has the same slot in each.
///
/// Thread safety: one thread at a time uses it.
class ModelCache {
 public:
  /// Whether sequences share what their prompts have in common, page by page. Throws Error for no layers, layers that
  /// differ in slots or capacity, and with `prefixes` for layers that are not paged, or differ in page size.
  ModelCache(std::vector<KvCache> layers, bool prefixes);
  ModelCache(ModelCache&&) noexcept;
  ModelCache& operator=(ModelCache&&) noexcept;
  ~ModelCache();

  /// What Model::forward appends to.
  [[nodiscard]] std::span<KvCache> layers();
  [[nodiscard]] int64_t slots() const;
  [[nodiscard]] int64_t capacity() const;
  /// Slots in which no sequence is open.
  [[nodiscard]] int64_t free_slots() const;
  /// Tokens of a slot's sequence. Throws Error for a slot where none is open, as all functions with a slot do.
  [[nodiscard]] int64_t length(int64_t slot) const;

  /// A sequence that was opened: what it holds already came from the prefix cache, and needs no computing.
  struct Opened {
    int64_t slot = 0;
    int64_t length = 0;  ///< Less than the number of tokens: the last one has to run to give logits.
  };
  /// Opens a sequence that will be these tokens, with the longest prefix of them that is cached under this salt:
  /// tenants with different salts share nothing. None if no slot is free.
  [[nodiscard]] std::optional<Opened> open(std::span<const int32_t> tokens, uint64_t salt = 0);
  /// Ends a sequence. Its committed pages stay cached until their memory is needed.
  void close(int64_t slot);
  /// Opens a sequence with the first `length` tokens of another; both share the pages. None if no slot is free.
  [[nodiscard]] std::optional<int64_t> fork(int64_t slot, int64_t length);
  /// As KvCache::truncate and KvCache::accept, in all layers.
  void truncate(int64_t slot, int64_t length);
  void accept(int64_t slot, int64_t first_position, std::span<const int64_t> indices);

  /// Tells what the tokens are that a slot holds, from its first on, so that later sequences can share them: whole
  /// pages, of a prompt as of generated text. Layers with windows and chunks give back only then what no later token
  /// sees, so that the pages of a call of up to KvCache::kTokensAtOnce tokens can all be shared. Throws Error for fewer
  /// tokens than the slot holds.
  void commit(int64_t slot, std::span<const int32_t> tokens);

  /// Whether these spans can be appended, so many tokens at a time (KvCache::check; all at once where a call has token
  /// trees); for that, cached prefixes that no sequence uses are forgotten, the least recently used first. Changes
  /// nothing else. Throws Error for what KvCache::check refuses for other reasons.
  [[nodiscard]] bool make_room(std::span<const Span> spans, int64_t tokens_at_once = KvCache::kTokensAtOnce);

  struct Stats {
    int64_t asked_tokens = 0;   ///< of all sequences opened
    int64_t shared_tokens = 0;  ///< of those, found in the prefix cache
    int64_t cached_pages = 0;   ///< pages of tokens that the prefix cache holds now
    int64_t evicted_pages = 0;  ///< that it forgot for want of memory
    int64_t pages = 0;          ///< of the fullest layer's pool
    int64_t pages_in_use = 0;   ///< of those, held by sequences or prefixes
  };
  [[nodiscard]] Stats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace regard
