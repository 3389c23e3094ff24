#include "cache/rehearsal.h"

#include <algorithm>

namespace regard {
namespace {

// Counts free pages while spans are appended piece by piece, each piece followed by a trim, without doing so.
class Rehearsal {
 public:
  Rehearsal(const Retention& retention, const PagePool& pool, int64_t page_size, std::span<const Span> spans,
            RehearsalNotes& notes)
      : retention_(retention), pool_(pool), page_size_(page_size), spans_(spans), free_(pool.free()), notes_(notes) {
    notes_.held.resize(spans.size());
  }
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;
  ~Rehearsal() {
    for (const int32_t page : notes_.touched) given_back(page) = 0;
    notes_.touched.clear();
  }

  // How many pages are missing at most.
  int64_t missing(std::span<const Slot> slots, int64_t tokens_at_once) {
    Cursor begin;
    while (begin.span < spans_.size()) {
      const Cursor end = append_piece(slots, begin, tokens_at_once);
      trim_piece(slots, begin, end);
      begin = end;
    }
    return std::max<int64_t>(0, -least_);
  }

 private:
  // Tokens before: whole spans, and some of the next one's.
  struct Cursor {
    size_t span = 0;
    int64_t tokens = 0;
  };
  Cursor append_piece(std::span<const Slot> slots, Cursor at, int64_t room) {
    while (at.span < spans_.size() && room > 0) {
      const Span& span = spans_[at.span];
      const int64_t count = std::min(room, span.count - at.tokens);
      if (span.slot != -1) {
        PageRange& pages = notes_.held[at.span];
        const Slot& slot = slots[static_cast<size_t>(span.slot)];
        if (at.tokens == 0) pages = begin(slot, span);
        append(pages, span.first_position + at.tokens + count);
      }
      room -= count;
      at.tokens += count;
      if (at.tokens == span.count) at = {.span = at.span + 1, .tokens = 0};
    }
    return at;
  }

  void trim_piece(std::span<const Slot> slots, Cursor begin, Cursor end) {
    const size_t last = end.tokens > 0 ? end.span + 1 : end.span;
    for (size_t i = begin.span; i < last; ++i) {
      const Span& span = spans_[i];
      const int64_t tokens = i == end.span ? end.tokens : span.count;
      if (span.slot != -1)
        trim(slots[static_cast<size_t>(span.slot)], notes_.held[i],
             retention_.first_needed(span.first_position + tokens));
    }
  }

  // What the slot holds once it is ready for the span's first token.
  PageRange begin(const Slot& slot, const Span& span) {
    PageRange pages{.first = slot.first_page, .end = slot.end_page(), .old_end = slot.end_page()};
    const int64_t page = span.first_position / page_size_;
    const bool inside_page = span.first_position % page_size_ != 0;
    if (span.first_position < slot.length) {
      const int64_t end = std::clamp(page + (inside_page ? 1 : 0), pages.first, pages.end);
      give_back(slot, pages, end, pages.end);
      pages.end = pages.old_end = end;
    }
    trim(slot, pages, retention_.first_needed(span.first_position));
    if (pages.first == pages.end) pages = {.first = page, .end = page, .old_end = page};
    if (inside_page && page < pages.end && holders(slot.page(page)) > 1) {
      --free_;
      let_go(slot.page(page));
      pages.copied = page;
    }
    return pages;
  }
  void append(PageRange& pages, int64_t end_position) {
    const int64_t end = std::max(pages.end, (end_position + page_size_ - 1) / page_size_);
    free_ -= end - pages.end;
    pages.end = end;
    least_ = std::min(least_, free_);
  }
  void trim(const Slot& slot, PageRange& pages, int64_t position) {
    if (retention_.all) return;
    const int64_t page = std::clamp(position / page_size_, pages.first, pages.end);
    give_back(slot, pages, pages.first, page);
    pages.first = page;
  }
  void give_back(const Slot& slot, const PageRange& pages, int64_t first, int64_t end) {
    for (int64_t page = first; page < end; ++page) {
      if (page < pages.old_end && page != pages.copied)
        let_go(slot.page(page));
      else
        ++free_;
    }
  }
  // A page is free when the last who holds it has let go.
  void let_go(int32_t page) {
    if (given_back(page)++ == 0) notes_.touched.push_back(page);
    if (holders(page) == 0) ++free_;
  }
  [[nodiscard]] int64_t holders(int32_t page) { return pool_.holders(page) - given_back(page); }
  [[nodiscard]] int32_t& given_back(int32_t page) { return notes_.given_back[static_cast<size_t>(page)]; }

  const Retention& retention_;
  const PagePool& pool_;
  int64_t page_size_;
  std::span<const Span> spans_;
  int64_t free_;
  int64_t least_ = 0;  // that free_ came to
  RehearsalNotes& notes_;
};

}  // namespace

int64_t missing_pages(const Retention& retention, const PagePool& pool, int64_t page_size, std::span<const Slot> slots,
                      std::span<const Span> spans, int64_t tokens_at_once, RehearsalNotes& notes) {
  return Rehearsal(retention, pool, page_size, spans, notes).missing(slots, tokens_at_once);
}

}  // namespace regard
