#include "cache/rehearsal.h"

#include <algorithm>

#include "cache/pieces.h"

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
    TokenCursor begin;
    while (begin.run < spans_.size()) {
      TokenCursor end = begin;
      next_piece(spans_, tokens_at_once, end);
      append_piece(slots, begin, end);
      trim_piece(slots, begin, end);
      begin = end;
    }
    return std::max<int64_t>(0, -least_);
  }

 private:
  // Calls visit(index of the span, its slot, tokens of it up to the end of the piece) for each span of a piece.
  template <class Visit>
  void for_each_part(std::span<const Slot> slots, TokenCursor piece, TokenCursor end, Visit visit) {
    const size_t last = end.tokens > 0 ? end.run + 1 : end.run;
    for (size_t i = piece.run; i < last; ++i)
      if (const Span& span = spans_[i]; span.slot != -1)
        visit(i, slots[static_cast<size_t>(span.slot)], i == end.run ? end.tokens : span.count);
  }

  void append_piece(std::span<const Slot> slots, TokenCursor piece, TokenCursor end) {
    for_each_part(slots, piece, end, [&](size_t i, const Slot& slot, int64_t tokens) {
      if (i != piece.run || piece.tokens == 0) notes_.held[i] = begin(slot, spans_[i]);
      append(notes_.held[i], spans_[i].first_position + tokens);
    });
  }

  void trim_piece(std::span<const Slot> slots, TokenCursor piece, TokenCursor end) {
    for_each_part(slots, piece, end, [&](size_t i, const Slot& slot, int64_t tokens) {
      trim(slot, notes_.held[i], retention_.first_needed(spans_[i].first_position + tokens));
    });
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
