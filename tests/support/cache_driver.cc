#include "support/cache_driver.h"

#include <algorithm>
#include <cstring>
#include <ostream>
#include <set>
#include <string>

#include "regard/block_table.h"
#include "regard/error.h"
#include "support/numbers.h"

namespace regard::test {
namespace {

CacheRules rules_of(const CacheScene& scene, const KvCache& cache) {
  CacheRules rules = scene.rules;
  rules.pages = cache.block_tables().pages();
  return rules;
}

}  // namespace

CacheDriver::CacheDriver(const CacheScene& scene)
    : scene_(scene),
      cache_(scene.rules.storage, scene.options(), scene.config()),
      model_(rules_of(scene, cache_)),
      numbers_(numbers_of(scene.layout)) {
  compare();
}

void CacheDriver::apply(const CacheOperation& operation) {
  // In the order of CacheOperation::Kind.
  using Operation = void (CacheDriver::*)(Random&);
  constexpr Operation kOperations[] = {&CacheDriver::append,  &CacheDriver::call,     &CacheDriver::roll_back,
                                       &CacheDriver::fork,    &CacheDriver::truncate, &CacheDriver::free,
                                       &CacheDriver::accept,  &CacheDriver::trim,     &CacheDriver::retain,
                                       &CacheDriver::release, &CacheDriver::share,    &CacheDriver::reserve,
                                       &CacheDriver::restore, &CacheDriver::read};
  Random random(static_cast<uint64_t>(operation.seed));
  (this->*kOperations[static_cast<size_t>(operation.kind)])(random);
  compare();
}

template <class Operation>
void CacheDriver::expect(bool succeeds, Operation&& operation) {
  std::string error;
  try {
    operation();
  } catch (const Error& thrown) {
    error = thrown.what();
  }
  if (succeeds != error.empty())
    RC_FAIL(succeeds ? "refused: " + error : std::string("the model refuses it, the cache does not"));
}

// Sometimes one that is not there.
int64_t CacheDriver::any_slot(Random& random) const {
  const int64_t slots = model_.rules().slots;
  return random.integer(0, 40) == 0 ? slots : random.integer(0, slots - 1);
}

int64_t CacheDriver::any_count(Random& random) const {
  const int64_t most[] = {1, 1, 8, model_.rules().page_size + 1, model_.rules().capacity};
  return random.integer(1, most[random.integer(0, 4)]);
}

std::vector<Token> CacheDriver::new_tokens(int64_t count) {
  std::vector<Token> tokens(static_cast<size_t>(count));
  for (Token& token : tokens) token = next_token_++;
  return tokens;
}

void CacheDriver::append_span(const Span& span) {
  const std::vector<Token> tokens = new_tokens(std::max<int64_t>(0, span.count));
  const auto rows = numbers_.of(tokens);
  const bool fits = model_.missing_pages({&span, 1}, std::max<int64_t>(1, span.count)) == 0;
  expect(fits, [&] { cache_.check({&span, 1}, std::max<int64_t>(1, span.count)); });
  expect(model_.append(span, tokens), [&] { cache_.append(span, rows.first, rows.second); });
}

void CacheDriver::append(Random& random) {
  const int64_t slot = any_slot(random);
  if (slot == model_.rules().slots)
    return append_span({.slot = random.integer(-2, slot), .count = random.integer(0, 2)});
  const int64_t hole = random.integer(0, 20) == 0 ? random.integer(1, 20) : 0;
  append_span({.slot = slot, .first_position = model_.slot(slot).length() + hole, .count = any_count(random)});
}

void CacheDriver::roll_back(Random& random) {
  const int64_t slot = random.integer(0, model_.rules().slots - 1);
  const int64_t length = model_.slot(slot).length();
  const int64_t deepest = random.integer(0, 2) == 0 ? length : std::min<int64_t>(length, 4);
  append_span({.slot = slot, .first_position = length - random.integer(0, deepest), .count = any_count(random)});
}

// Several sequences at once, as a layer does it.
void CacheDriver::call(Random& random) {
  std::vector<Span> spans;
  const int64_t count = random.integer(1, 4);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t slot = random.integer(0, 8) == 0 ? -1 : any_slot(random);
    const bool exists = slot >= 0 && slot < model_.rules().slots;
    const int64_t length = exists ? model_.slot(slot).length() : 0;
    spans.push_back({.slot = slot,
                     .first_position = length - random.integer(0, std::min<int64_t>(length, 2)),
                     .count = any_count(random)});
    if (random.integer(0, 2) == 0) spans.back().prefix = random.integer(0, spans.back().count);
    if (random.integer(0, 40) == 0) spans.back().prefix = random.integer(0, 1) == 0 ? -1 : spans.back().count + 1;
  }
  constexpr int64_t kAtOnce[] = {1, 3, 16, 40, KvCache::kTokensAtOnce};
  const int64_t at_once = random.integer(0, 40) == 0 ? 0 : kAtOnce[random.integer(0, 4)];
  const auto missing = model_.missing_pages(spans, at_once);
  expect(missing.has_value(), [&] { RC_ASSERT(cache_.missing_pages(spans, at_once) == missing.value_or(-1)); });
  expect(missing == 0, [&] { cache_.check(spans, at_once); });
  if (missing != 0) return;
  for (const auto& piece : CacheModel::pieces(spans, at_once)) {
    for (const Span& part : piece) append_span(part);
    for (const Span& part : piece) {
      if (part.slot == -1) continue;
      model_.trim(part.slot);
      cache_.trim(part.slot);
    }
  }
}

void CacheDriver::fork(Random& random) {
  const int64_t from = any_slot(random);
  const int64_t to = any_slot(random);
  const int64_t stored = from < model_.rules().slots ? model_.slot(from).length() : 0;
  const int64_t length = random.integer(0, 1) == 0 ? stored : random.integer(0, stored + 1);
  expect(model_.fork(from, to, length), [&] { cache_.fork(from, to, length); });
}

void CacheDriver::truncate(Random& random) {
  const int64_t slot = any_slot(random);
  const int64_t stored = slot < model_.rules().slots ? model_.slot(slot).length() : 0;
  const int64_t length = random.integer(0, 1) == 0 ? stored - random.integer(0, 4) : random.integer(0, stored + 1);
  expect(model_.truncate(slot, length), [&] { cache_.truncate(slot, length); });
}

void CacheDriver::free(Random& random) {
  const int64_t slot = random.integer(0, model_.rules().slots - 1);
  expect(model_.truncate(slot, 0), [&] { cache_.truncate(slot, 0); });
}

void CacheDriver::trim(Random& random) {
  const int64_t slot = random.integer(0, model_.rules().slots - 1);
  model_.trim(slot);
  cache_.trim(slot);
  // Pages are given back whole: less than one is held too much.
  if (scene_.rules.has_pool() && model_.slot(slot).length() > 0)
    RC_ASSERT(model_.rules().first_needed(cache_.length(slot)) - cache_.first_held(slot) <
                  cache_.block_tables().page_size() ||
              (scene_.rules.window == 0 && scene_.rules.chunk == 0));
}

void CacheDriver::accept(Random& random) {
  const int64_t slot = any_slot(random);
  const int64_t stored = slot < model_.rules().slots ? model_.slot(slot).length() : 0;
  const int64_t first = std::max<int64_t>(0, stored - random.integer(0, random.integer(0, 1) == 0 ? 5 : stored));
  std::vector<int64_t> indices;
  const int64_t chance = random.integer(1, 3);
  for (int64_t i = 0; i < stored - first; ++i)
    if (random.integer(0, chance) != 0) indices.push_back(i);
  if (!indices.empty() && random.integer(0, 15) == 0) indices.push_back(indices[indices.size() / 2]);
  if (random.integer(0, 30) == 0) indices.push_back(stored - first);
  expect(model_.accept(slot, first, indices), [&] { cache_.accept(slot, first, indices); });
}

int32_t CacheDriver::real_page(int page) const {
  if (page >= 0) return real_pages_.at(page);
  const std::vector<int32_t> free = free_pages();
  return page == -1 || free.empty() ? int32_t{-1} : free[static_cast<size_t>(-page) % free.size()];
}

std::vector<int32_t> CacheDriver::free_pages() const {
  std::vector<int32_t> free;
  for (int32_t page = 0; page < cache_.block_tables().pages(); ++page)
    if (cache_.block_tables().reference_count(page) == 0) free.push_back(page);
  return free;
}

void CacheDriver::retain(Random& random) {
  const std::vector<int> used = model_.used_pages();
  const int page =
      used.empty() || random.integer(0, 10) == 0 ? -2 : used[static_cast<size_t>(random.integer(0, 100)) % used.size()];
  expect(model_.retain(page), [&] { cache_.block_tables().retain(real_page(page)); });
}

// Sometimes a page that sequences hold, but nobody else.
void CacheDriver::release(Random& random) {
  const std::vector<int> candidates = random.integer(0, 5) == 0 ? model_.used_pages() : model_.retained();
  const int page =
      candidates.empty() ? -2 : candidates[static_cast<size_t>(random.integer(0, 100)) % candidates.size()];
  const int32_t real = real_page(page);
  expect(model_.release(page), [&] { cache_.block_tables().release(real); });
}

// The first pages of a sequence, or of what was retained, with mistakes now and then.
void CacheDriver::share(Random& random) {
  const int64_t slot = any_slot(random);
  const int64_t source = random.integer(0, model_.rules().slots - 1);
  std::vector<int> pages;
  int64_t length = 0;
  if (model_.rules().has_pool() && random.integer(0, 2) != 0) {
    const CacheModel::Slot& from = model_.slot(source);
    length = std::max<int64_t>(0, from.length() - (random.integer(0, 1) == 0 ? 0 : random.integer(0, from.length())));
    for (int64_t page = 0; page < model_.rules().pages_of(length); ++page)
      pages.push_back(page < from.first_page ? -1 : from.page(page));
  } else {
    pages = model_.retained();
    if (!pages.empty())
      length = (static_cast<int64_t>(pages.size()) - 1) * model_.rules().page_size + model_.written(pages.back());
  }
  const int64_t mistake = random.integer(0, 30);
  if (mistake == 0) length += 1;
  if (mistake == 1) pages.push_back(-2);
  if (mistake == 2 && !pages.empty()) pages[pages.size() / 2] = pages.front();
  if (mistake == 3 && !pages.empty()) pages.back() = -2;
  if (mistake == 4 && !pages.empty()) pages.front() = -1;
  std::vector<int32_t> real;
  for (const int page : pages) real.push_back(real_page(page));
  expect(model_.share(slot, pages, length), [&] { cache_.block_tables().share(slot, real, length); });
}

void CacheDriver::reserve(Random& random) {
  const int64_t slot = random.integer(0, model_.rules().slots - 1);
  std::vector<int32_t> pages = free_pages();
  std::shuffle(pages.begin(), pages.end(), std::mt19937(static_cast<uint32_t>(random.integer(0, 1000))));
  pages.resize(std::min(pages.size(), static_cast<size_t>(random.integer(1, 3))));
  bool fits = model_.rules().has_pool() && model_.slot(slot).end_page() + static_cast<int64_t>(pages.size()) <=
                                               model_.rules().pages_of(model_.rules().capacity);
  const int64_t mistake = random.integer(0, 6);
  if (mistake == 0 && !pages.empty()) pages.push_back(pages.front());
  if (mistake == 1 && !model_.used_pages().empty()) pages.push_back(real_page(model_.used_pages().front()));
  if (mistake == 2) pages.push_back(static_cast<int32_t>(cache_.block_tables().pages()));
  fits = fits && (mistake > 2 || (mistake == 0 && pages.empty()) || (mistake == 1 && model_.used_pages().empty()));
  expect(fits, [&] { cache_.block_tables().reserve(slot, pages); });
  if (!fits) return;
  const std::vector<int> fresh = model_.reserve(slot, static_cast<int64_t>(pages.size()));
  for (size_t i = 0; i < fresh.size(); ++i) real_pages_[fresh[i]] = pages[i];
}

// Into an empty slot, perhaps without the oldest tokens.
void CacheDriver::restore(Random& random) {
  const int64_t from = random.integer(0, model_.rules().slots - 1);
  const int64_t to = any_slot(random);
  const int64_t held = model_.first_held(from);
  const int64_t length = model_.slot(from).length();
  const int64_t first = random.integer(0, 1) == 0 ? held : random.integer(held, length);
  const auto stored = cache_.read_stored(from, first, length - first);
  const std::vector<Token> tokens(model_.slot(from).tokens.begin() + first, model_.slot(from).tokens.end());
  expect(model_.restore(to, first, tokens), [&] { cache_.restore_stored(to, first, stored); });
}

// What is not held can't be read or found.
void CacheDriver::read(Random& random) {
  const int64_t slot = any_slot(random);
  const bool exists = slot < model_.rules().slots;
  const int64_t length = exists ? model_.slot(slot).length() : 0;
  const int64_t first = random.integer(0, length + 1);
  const int64_t count = random.integer(0, 3);
  const bool stored = exists && first + count <= length && (count == 0 || first >= model_.first_held(slot));
  expect(stored, [&] { (void)cache_.read(slot, first, count); });
  expect(stored, [&] { (void)cache_.read_stored(slot, first, count); });
  const bool held = exists && first < length && first >= model_.first_held(slot);
  expect(held, [&] { (void)cache_.block_tables().slot_mapping(slot, first); });
}

void CacheDriver::compare() {
  for (int64_t slot = 0; slot < model_.rules().slots; ++slot) compare_slot(slot);
  compare_pages();
  std::erase_if(real_pages_, [used = model_.used_pages()](const auto& page) {
    return !std::ranges::binary_search(used, page.first);
  });
}

void CacheDriver::compare_slot(int64_t slot) {
  const CacheModel::Slot& expected = model_.slot(slot);
  const int64_t length = expected.length();
  RC_ASSERT(cache_.length(slot) == length);
  RC_ASSERT(cache_.first_held(slot) == model_.first_held(slot));
  // Whatever else: the next token finds what it sees.
  RC_ASSERT(length == 0 || cache_.first_held(slot) <= model_.rules().first_seen(length));
  compare_tokens(slot);
  if (!model_.rules().has_pool()) return;
  const std::vector<int32_t> table = cache_.block_tables().table(slot);
  RC_ASSERT(static_cast<int64_t>(table.size()) == model_.rules().pages_of(length));
  for (int64_t page = 0; page < static_cast<int64_t>(table.size()); ++page) {
    const int32_t real = table[static_cast<size_t>(page)];
    RC_ASSERT((real == -1) == (page < expected.first_page));
    if (real != -1) RC_ASSERT(real_pages_.try_emplace(expected.page(page), real).first->second == real);
  }
  if (length > model_.first_held(slot))
    RC_ASSERT(cache_.block_tables().slot_mapping(slot, length - 1) ==
              table.back() * model_.rules().page_size + (length - 1) % model_.rules().page_size);
}

void CacheDriver::compare_tokens(int64_t slot) const {
  const int64_t first = model_.first_held(slot);
  const auto [keys, values] = cache_.read(slot, first, cache_.length(slot) - first);
  const float* key = keys.view().as<float>();
  const float* value = values.view().as<float>();
  const auto same = [](std::span<const float> wanted, const float*& next) {
    const float* from = next;
    next += wanted.size();
    return std::memcmp(from, wanted.data(), wanted.size_bytes()) == 0;
  };
  const std::vector<Token>& tokens = model_.slot(slot).tokens;
  for (size_t i = static_cast<size_t>(first); i < tokens.size(); ++i) {
    RC_ASSERT(tokens[i] != kUnknownToken);
    if (!same(numbers_.stored_key(tokens[i]), key) || !same(numbers_.stored_value(tokens[i]), value))
      RC_FAIL("slot " + std::to_string(slot) + " holds another token at position " + std::to_string(i));
  }
}

// Every page is free or held by as many as hold it.
void CacheDriver::compare_pages() const {
  if (!model_.rules().has_pool()) return;
  const std::vector<int> used = model_.used_pages();
  RC_ASSERT(cache_.block_tables().pages() == model_.rules().pages);
  RC_ASSERT(cache_.block_tables().free_pages() == cache_.block_tables().pages() - static_cast<int64_t>(used.size()));
  std::set<int32_t> met;
  for (const int page : used) {
    RC_ASSERT(met.insert(real_pages_.at(page)).second);
    RC_ASSERT(cache_.block_tables().reference_count(real_pages_.at(page)) == model_.holders(page));
  }
  RC_ASSERT(static_cast<int64_t>(free_pages().size()) == cache_.block_tables().free_pages());
}

}  // namespace regard::test
