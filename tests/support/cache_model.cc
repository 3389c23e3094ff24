#include "support/cache_model.h"

#include <algorithm>
#include <set>

namespace regard::test {

int64_t CacheRules::first_seen(int64_t position) const {
  int64_t first = 0;
  if (storage == KvStorage::contiguous) return first;
  if (window > 0 && is_causal) first = std::max(first, position - window + 1);
  if (window > 0 && !is_causal) first = std::max(first, position - window / 2);
  if (chunk > 0) first = std::max(first, position - position % chunk);
  return first;
}

int64_t CacheRules::first_needed(int64_t length) const {
  return first_seen(std::max<int64_t>(0, length - speculation_length));
}

int64_t CacheModel::first_held(int64_t index) const {
  return std::min(slot(index).first_page * rules_.page_size, slot(index).length());
}

int64_t CacheModel::holders(int page) const {
  int64_t count = std::ranges::count(retained_, page);
  for (const Slot& slot : slots_) count += std::ranges::count(slot.table, page);
  return count;
}

std::vector<int> CacheModel::used_pages() const {
  std::set<int> used(retained_.begin(), retained_.end());
  for (const Slot& slot : slots_) used.insert(slot.table.begin(), slot.table.end());
  return {used.begin(), used.end()};
}

int64_t CacheModel::free_pages() const { return rules_.pages - static_cast<int64_t>(used_pages().size()); }

bool CacheModel::can_go_on(int64_t first_page, int64_t length) const {
  return length == 0 || first_page * rules_.page_size <= rules_.first_seen(length);
}

bool CacheModel::is_acceptable(const Span& span) const {
  if (span.count < 1 || span.prefix < 0 || span.prefix > span.count || (span.slot != -1 && !exists(span.slot)))
    return false;
  if (span.slot == -1) return true;
  return span.first_position >= 0 && span.first_position <= slot(span.slot).length() &&
         span.count <= rules_.capacity - span.first_position &&
         can_go_on(slot(span.slot).first_page, span.first_position);
}

std::vector<std::vector<Span>> CacheModel::pieces(std::span<const Span> spans, int64_t tokens_at_once) {
  std::vector<std::vector<Span>> pieces(1);
  int64_t room = tokens_at_once;
  for (Span rest : spans)
    while (rest.count > 0) {
      // A prefix that does not fit begins a piece of its own, which it may overfill.
      if (room == 0 || (rest.prefix > room && room < tokens_at_once)) {
        pieces.emplace_back();
        room = tokens_at_once;
      }
      const int64_t count = std::max(std::min(room, rest.count), rest.prefix);
      pieces.back().push_back({.slot = rest.slot, .first_position = rest.first_position, .count = count});
      rest = {.slot = rest.slot, .first_position = rest.first_position + count, .count = rest.count - count};
      room = std::max<int64_t>(0, room - count);
    }
  return pieces;
}

std::optional<int64_t> CacheModel::missing_pages(std::span<const Span> spans, int64_t tokens_at_once) const {
  if (tokens_at_once < 1) return std::nullopt;
  std::set<int64_t> met;
  for (const Span& span : spans)
    if (!is_acceptable(span) || (span.slot != -1 && !met.insert(span.slot).second)) return std::nullopt;
  if (!rules_.has_pool()) return 0;
  CacheModel plan = *this;
  int64_t missing = 0;
  for (const auto& piece : pieces(spans, tokens_at_once)) {
    for (const Span& part : piece) {
      if (part.slot == -1) continue;
      plan.store(part, std::vector<Token>(static_cast<size_t>(part.count), kUnknownToken));
      missing = std::max(missing, -plan.free_pages());
    }
    for (const Span& part : piece)
      if (part.slot != -1) plan.trim(part.slot);
  }
  return missing;
}

bool CacheModel::append(const Span& span, std::span<const Token> tokens) {
  if (missing_pages({&span, 1}, std::max<int64_t>(1, span.count)) != 0) return false;
  if (span.slot != -1) store(span, tokens);
  return true;
}

void CacheModel::store(const Span& span, std::span<const Token> tokens) {
  Slot& slot = at(span.slot);
  const int64_t first = span.first_position;
  if (first < slot.length()) drop_after(slot, first);
  drop_before(slot, rules_.first_needed(first));
  slot.tokens.insert(slot.tokens.end(), tokens.begin(), tokens.end());
  if (!rules_.has_pool()) return;
  const int64_t page = first / rules_.page_size;
  if (slot.table.empty()) slot.first_page = page;
  if (first % rules_.page_size != 0 && page < slot.end_page()) make_own(slot.page(page));
  while (slot.end_page() < rules_.pages_of(first + span.count)) slot.table.push_back(new_page());
  for (int64_t i = 0; i < span.count; ++i) {
    auto& written = pages_.at(slot.page((first + i) / rules_.page_size));
    written.resize(static_cast<size_t>((first + i) % rules_.page_size), kUnknownToken);
    written.push_back(tokens[static_cast<size_t>(i)]);
  }
  forget_free_pages();
}

bool CacheModel::truncate(int64_t index, int64_t length) {
  if (!exists(index) || length < 0 || length > slot(index).length()) return false;
  if (!can_go_on(slot(index).first_page, length)) return false;
  drop_after(at(index), length);
  return true;
}

bool CacheModel::accept(int64_t index, int64_t first_position, std::span<const int64_t> indices) {
  if (!exists(index)) return false;
  Slot& slot = at(index);
  if (first_position < 0 || first_position > slot.length()) return false;
  const auto count = static_cast<int64_t>(indices.size());
  int64_t in_place = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t chosen = indices[static_cast<size_t>(i)];
    if (chosen < (i == 0 ? 0 : indices[static_cast<size_t>(i - 1)] + 1)) return false;
    if (chosen >= slot.length() - first_position) return false;
    if (chosen == i) in_place = i + 1;
  }
  if (!can_go_on(slot.first_page, first_position + count)) return false;
  if (in_place < count && rules_.has_pool()) {
    const int64_t first_page = (first_position + in_place) / rules_.page_size;
    if (first_page < slot.first_page) return false;
    int64_t copies = 0;
    for (int64_t page = first_page; page < rules_.pages_of(first_position + count); ++page)
      copies += holders(slot.page(page)) > 1 ? 1 : 0;
    if (copies > free_pages()) return false;
    for (int64_t page = first_page; page < rules_.pages_of(first_position + count); ++page) make_own(slot.page(page));
  }
  for (int64_t i = in_place; i < count; ++i) {
    const int64_t to = first_position + i;
    const Token token = slot.tokens[static_cast<size_t>(first_position + indices[static_cast<size_t>(i)])];
    slot.tokens[static_cast<size_t>(to)] = token;
    if (rules_.has_pool())
      pages_.at(slot.page(to / rules_.page_size))[static_cast<size_t>(to % rules_.page_size)] = token;
  }
  drop_after(slot, first_position + count);
  return true;
}

bool CacheModel::fork(int64_t from, int64_t to, int64_t length) {
  if (!exists(from) || !exists(to) || !is_free(to) || length < 0 || length > slot(from).length()) return false;
  if (!can_go_on(slot(from).first_page, length)) return false;
  at(to) = slot(from);
  drop_after(at(to), length);
  drop_before(at(to), rules_.first_needed(length));
  return true;
}

bool CacheModel::restore(int64_t index, int64_t first, std::span<const Token> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  if (!exists(index) || !is_free(index) || count == 0 || first < 0 || count > rules_.capacity - first) return false;
  // A page of which only the end is given is not held.
  const int64_t first_page = rules_.pages_of(first);
  if (!can_go_on(first_page, first + count)) return false;
  if (rules_.has_pool() && rules_.pages_of(first + count) - first_page > free_pages()) return false;
  Slot& slot = at(index);
  slot.tokens.assign(static_cast<size_t>(first), kUnknownToken);
  slot.tokens.insert(slot.tokens.end(), tokens.begin(), tokens.end());
  slot.first_page = first_page;
  if (!rules_.has_pool()) return true;
  for (int64_t page = first_page; page < rules_.pages_of(first + count); ++page) {
    const auto begin = slot.tokens.begin() + page * rules_.page_size;
    const auto end = slot.tokens.begin() + std::min((page + 1) * rules_.page_size, first + count);
    slot.table.push_back(new_page({begin, end}));
  }
  return true;
}

bool CacheModel::share(int64_t index, std::span<const int> pages, int64_t length) {
  if (!rules_.has_pool() || !exists(index) || !is_free(index)) return false;
  if (length < 0 || length > rules_.capacity) return false;
  const auto count = static_cast<int64_t>(pages.size());
  if (count != rules_.pages_of(length)) return false;
  const int64_t first = std::ranges::find_if(pages, [](int page) { return page != -1; }) - pages.begin();
  const std::span<const int> shared = pages.subspan(static_cast<size_t>(first));
  for (size_t i = 0; i < shared.size(); ++i) {
    if (!pages_.contains(shared[i]) || std::ranges::count(shared, shared[i]) > 1) return false;
    const int64_t position = (first + static_cast<int64_t>(i)) * rules_.page_size;
    if (written(shared[i]) < std::min(rules_.page_size, length - position)) return false;
  }
  if (!can_go_on(first, length)) return false;
  Slot& slot = at(index);
  slot.first_page = first;
  slot.table.assign(shared.begin(), shared.end());
  slot.tokens.assign(static_cast<size_t>(std::min(length, first * rules_.page_size)), kUnknownToken);
  for (const int page : shared) slot.tokens.insert(slot.tokens.end(), pages_.at(page).begin(), pages_.at(page).end());
  // Of the last page no more than the sequence has; the others are full.
  slot.tokens.resize(static_cast<size_t>(length));
  return true;
}

bool CacheModel::retain(int page) {
  if (!rules_.has_pool() || !pages_.contains(page) || written(page) == 0) return false;
  retained_.push_back(page);
  return true;
}

bool CacheModel::release(int page) {
  const auto found = std::ranges::find(retained_, page);
  if (found == retained_.end()) return false;
  retained_.erase(found);
  forget_free_pages();
  return true;
}

void CacheModel::trim(int64_t index) { drop_before(at(index), rules_.first_needed(slot(index).length())); }

std::vector<int> CacheModel::reserve(int64_t index, int64_t pages) {
  std::vector<int> fresh;
  for (int64_t i = 0; i < pages; ++i) fresh.push_back(new_page());
  at(index).table.insert(at(index).table.end(), fresh.begin(), fresh.end());
  return fresh;
}

int CacheModel::new_page(std::vector<Token> tokens) {
  pages_[next_page_] = std::move(tokens);
  return next_page_++;
}

void CacheModel::make_own(int& page) {
  if (holders(page) > 1) page = new_page(pages_.at(page));
}

void CacheModel::drop_after(Slot& slot, int64_t length) {
  slot.tokens.resize(static_cast<size_t>(length));
  if (!rules_.has_pool()) return;
  const int64_t end = std::max(slot.first_page, rules_.pages_of(length));
  if (end < slot.end_page()) slot.table.resize(static_cast<size_t>(end - slot.first_page));
  // What the only holder has forgotten is nobody's.
  const auto left = static_cast<size_t>(length % rules_.page_size);
  const int64_t page = length / rules_.page_size;
  if (left > 0 && page >= slot.first_page && holders(slot.page(page)) == 1)
    pages_.at(slot.page(page)).resize(std::min(left, pages_.at(slot.page(page)).size()));
  if (length == 0) slot.first_page = 0;
  forget_free_pages();
}

void CacheModel::drop_before(Slot& slot, int64_t position) {
  while (!slot.table.empty() && (slot.first_page + 1) * rules_.page_size <= position) {
    slot.table.erase(slot.table.begin());
    ++slot.first_page;
  }
  forget_free_pages();
}

// What was in a page is gone with its last holder.
void CacheModel::forget_free_pages() {
  std::erase_if(pages_, [this](const auto& page) { return holders(page.first) == 0; });
}

}  // namespace regard::test
