#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "regard/attention_config.h"
#include "regard/cache.h"

// A cache as one would write it down: a vector of tokens a sequence, pages that are vectors too, and who holds which is
// counted anew each time. It says whether an operation may succeed, and what is stored afterwards.
namespace regard::test {

// A token by its number; what its keys and values are is nothing to the model.
using Token = int;
constexpr Token kUnknownToken = -1;  // of a page that was given back before the sequence was shared

// What the model has to know of a cache.
struct CacheRules {
  KvStorage storage = KvStorage::contiguous;
  int64_t slots = 1;
  int64_t capacity = 1;
  int64_t page_size = 16;
  int64_t pages = 0;  // of the pool
  int64_t window = 0;
  int64_t chunk = 0;
  bool is_causal = true;
  int64_t speculation_length = 0;

  [[nodiscard]] bool has_pool() const { return storage != KvStorage::contiguous; }
  [[nodiscard]] int64_t pages_of(int64_t tokens) const { return (tokens + page_size - 1) / page_size; }
  // The first position that the token at `position` sees, of what the cache has to keep.
  [[nodiscard]] int64_t first_seen(int64_t position) const;
  // The first that a later token sees after `length` tokens, of which a draft may be taken back.
  [[nodiscard]] int64_t first_needed(int64_t length) const;
};

class CacheModel {
 public:
  struct Slot {
    std::vector<Token> tokens;
    int64_t first_page = 0;
    std::vector<int> table;  // pages first_page, first_page + 1, ...: also those reserved for later tokens

    [[nodiscard]] int64_t length() const { return static_cast<int64_t>(tokens.size()); }
    [[nodiscard]] int64_t end_page() const { return first_page + static_cast<int64_t>(table.size()); }
    [[nodiscard]] int& page(int64_t index) { return table[static_cast<size_t>(index - first_page)]; }
    [[nodiscard]] int page(int64_t index) const { return table[static_cast<size_t>(index - first_page)]; }
  };

  explicit CacheModel(const CacheRules& rules) : rules_(rules), slots_(static_cast<size_t>(rules.slots)) {}

  [[nodiscard]] const CacheRules& rules() const { return rules_; }
  [[nodiscard]] const Slot& slot(int64_t index) const { return slots_[static_cast<size_t>(index)]; }
  [[nodiscard]] int64_t first_held(int64_t index) const;
  // Pages by the model's own numbers.
  [[nodiscard]] int64_t holders(int page) const;
  [[nodiscard]] int64_t written(int page) const { return static_cast<int64_t>(pages_.at(page).size()); }
  [[nodiscard]] std::vector<int> used_pages() const;
  [[nodiscard]] const std::vector<int>& retained() const { return retained_; }

  // How many pages more a call would need; nothing where it is refused for another reason.
  [[nodiscard]] std::optional<int64_t> missing_pages(std::span<const Span> spans, int64_t tokens_at_once) const;
  // The packed tokens of a call, cut into pieces.
  [[nodiscard]] static std::vector<std::vector<Span>> pieces(std::span<const Span> spans, int64_t tokens_at_once);

  // Each returns whether the operation succeeds. If it doesn't, nothing changes.
  bool append(const Span& span, std::span<const Token> tokens);
  bool truncate(int64_t slot, int64_t length);
  bool accept(int64_t slot, int64_t first_position, std::span<const int64_t> indices);
  bool fork(int64_t from, int64_t to, int64_t length);
  bool restore(int64_t slot, int64_t first, std::span<const Token> tokens);
  bool share(int64_t slot, std::span<const int> pages, int64_t length);  // -1: none, other negative ones: not in use
  bool retain(int page);
  bool release(int page);
  void trim(int64_t slot);
  // Returns the new pages.
  std::vector<int> reserve(int64_t slot, int64_t pages);

 private:
  [[nodiscard]] Slot& at(int64_t index) { return slots_[static_cast<size_t>(index)]; }
  [[nodiscard]] bool exists(int64_t index) const { return index >= 0 && index < rules_.slots; }
  [[nodiscard]] bool is_free(int64_t index) const { return slot(index).tokens.empty() && slot(index).table.empty(); }
  [[nodiscard]] bool is_acceptable(const Span& span) const;
  [[nodiscard]] bool can_go_on(int64_t first_page, int64_t length) const;
  [[nodiscard]] int64_t free_pages() const;
  int new_page(std::vector<Token> tokens = {});
  void make_own(int& page);
  void drop_after(Slot& slot, int64_t length);
  void drop_before(Slot& slot, int64_t position);
  void store(const Span& span, std::span<const Token> tokens);
  void forget_free_pages();

  CacheRules rules_;
  std::vector<Slot> slots_;
  std::map<int, std::vector<Token>> pages_;  // what was written to each, from its first token on
  std::vector<int> retained_;                // once for every call
  int next_page_ = 0;
};

}  // namespace regard::test
