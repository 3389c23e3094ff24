#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "regard/cache.h"

namespace regard {

/// The pages (blocks) of a KvCache, and each slot's block table: which pages hold its tokens. Prefix caches, schedulers
/// and engines that allocate by themselves work with these; a KvCache::append without them takes pages by itself.
///
/// An engine with block tables of its own makes a paged cache, names pages, and tells where tokens lie:
///
///     auto cache = regard::KvCache::paged({.slots = 2, .capacity = 64, .page_size = 16, .pages = 8}, config);
///     regard::BlockTables& tables = cache.block_tables();
///     tables.reserve(0, blocks);               // slot 0 will write to these pages, in this order
///     cache.append({.slot = 0, .count = 20}, keys, values);
///     tables.slot_mapping(0, 17);              // blocks[1] * 16 + 1
///     tables.share(1, tables.table(0), 20);    // slot 1 begins with the same 20 tokens, in the same pages
///     tables.reference_count(blocks[0]);       // 2: the first to write to a shared page gets a copy
///
/// Lives as long as its cache, also when that is moved. In a contiguous cache pages belong to their slots: retain,
/// release, share and reserve throw Error.
///
/// Thread safety: that of its cache, which its methods read or change.
class BlockTables {
 public:
  /// Tokens a page.
  [[nodiscard]] int64_t page_size() const;
  /// Pages of the pool, and those of them with a reference count of 0.
  [[nodiscard]] int64_t pages() const;
  [[nodiscard]] int64_t free_pages() const;
  /// A slot's block table: the pages that hold tokens 0.. of it, page_size() in each; -1: given back. Valid until the
  /// slot changes.
  [[nodiscard]] std::vector<int32_t> table(int64_t slot) const;
  /// Its entry `index`; -1 if it was given back. Throws Error for an index past the length.
  [[nodiscard]] int32_t page_of(int64_t slot, int64_t index) const;
  /// The slot mapping of a token: page * page_size + offset [KV-62]. Throws Error if it is not held.
  [[nodiscard]] int64_t slot_mapping(int64_t slot, int64_t position) const;
  /// Adds a reference to a page in use, so that it outlives its sequences, and drops it again. Throws Error for a page
  /// that does not exist, that is free or not written yet, and `release` for one that was not retained as often.
  void retain(int32_t page);
  void release(int32_t page);
  /// A page's reference count: sequences that hold it, and retain calls. 0: it is free.
  [[nodiscard]] int64_t reference_count(int32_t page) const;
  /// Of the pages that are retained, but that no sequence holds, the one after `previous`, or the first: in the order
  /// in which sequences released them, which is that of eviction by least recent use. -1: there is none.
  [[nodiscard]] int32_t next_unused(int32_t previous = -1) const;
  /// From now on Attention::forward leaves the trim at its end to the owner of shared pages, who retains them first.
  void leave_trim_to_owner();
  [[nodiscard]] bool owner_trims() const;
  /// Makes an empty slot a sequence of `length` tokens in pages that are in use: a shared prefix. -1 stands for a page
  /// that no later token sees. Throws Error, before anything changes, for a slot in use, pages out of range, free,
  /// named twice, not written as far, too few or too many.
  void share(int64_t slot, std::span<const int32_t> pages, int64_t length);
  /// Gives a slot of a pool these free pages for the tokens that it will append next, in order. Throws Error, before
  /// anything changes, for pages out of range, in use or named twice.
  void reserve(int64_t slot, std::span<const int32_t> pages);

 private:
  friend class KvCache;

  KvCache::State* state_ = nullptr;
};

}  // namespace regard
