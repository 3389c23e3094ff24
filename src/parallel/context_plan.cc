#include "parallel/context_plan.h"

#include <algorithm>

namespace regard {
namespace {

// Positions that move between caches at a time.
constexpr int64_t kWindow = 2048;

int64_t index_of(std::span<const int64_t> heads, int64_t head) {
  return std::find(heads.begin(), heads.end(), head) - heads.begin();
}

bool takes_part(int64_t rank, int64_t giver, int64_t taker) {
  return rank == ContextPlan::kAllRanks || rank == giver || rank == taker;
}

// Intervals that touch or overlap become one; their first positions do not fall.
void join(std::vector<Interval>& all, Interval next) {
  if (next.empty()) return;
  if (!all.empty() && next.first <= all.back().last + 1)
    all.back().last = std::max(all.back().last, next.last);
  else
    all.push_back(next);
}

std::vector<Interval> joined(std::vector<Interval> all, Interval with) {
  all.push_back(with);
  std::ranges::sort(all, {}, &Interval::first);
  std::vector<Interval> disjoint;
  for (const Interval& next : all) join(disjoint, next);
  return disjoint;
}

// The windows that hold a position of one of the intervals.
std::vector<Interval> windows_of(const std::vector<Interval>& intervals) {
  std::vector<int64_t> indices;
  for (const Interval& of : intervals)
    for (int64_t index = of.first / kWindow; index <= of.last / kWindow && !of.empty(); ++index)
      indices.push_back(index);
  std::ranges::sort(indices);
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  std::vector<Interval> windows;
  for (const int64_t index : indices) windows.push_back({index * kWindow, (index + 1) * kWindow - 1});
  return windows;
}

// The positions before a sequence's span that a row's tokens see.
Interval prior_of(const ContextSequence& sequence, int64_t row) {
  const Interval& seen = sequence.seen[static_cast<size_t>(row)];
  return seen.empty() ? seen : Interval{seen.first, std::min(seen.last, sequence.span.first_position - 1)};
}

}  // namespace

ContextPlan::ContextPlan(std::vector<ContextSequence> sequences, const Mask& mask, const KvHolders& holders,
                         const RankMesh& prefill_mesh)
    : sequences_(std::move(sequences)), holders_(holders), mesh_(prefill_mesh) {
  for (ContextSequence& sequence : sequences_) {
    const Span& span = sequence.span;
    for (const SpanShare& share : sequence.shares) {
      const auto visible = [&](int64_t token) {
        return mask.visible(span.first_position + token, span.first_position + span.count, span.prefix_end());
      };
      const bool sees = share.count > 0 && span.slot != -1;
      sequence.seen.push_back(
          sees ? Interval{std::max(sequence.begin, visible(share.first).first), visible(share.last()).last}
               : Interval{});
    }
    seen_.push_back(wishes_of(sequence, mask, false));
    seen_or_kept_.push_back(wishes_of(sequence, mask, true));
  }
}

ContextPlan::Wishes ContextPlan::wishes_of(const ContextSequence& sequence, const Mask& mask, bool kept) const {
  const Span& span = sequence.span;
  const Interval all{span.first_position, span.first_position + span.count - 1};
  Wishes wishes;
  for (size_t row = 0; row < sequence.shares.size(); ++row) {
    const SpanShare& share = sequence.shares[row];
    std::vector<Interval> seen;
    if (sequence.seen[row].empty()) {
      wishes.push_back(joined({}, kept ? sequence.kept : Interval{}));
      continue;
    }
    // Without gaps between what one token sees and the next one does, all is one interval.
    if (share.stride == 1 || !mask.reach())
      join(seen, sequence.seen[row].intersect(all));
    else
      for (int64_t i = 0; i < share.count; ++i)
        join(seen, mask.visible(all.first + share.at(i), all.last + 1, span.prefix_end()).intersect(all));
    wishes.push_back(kept ? joined(std::move(seen), sequence.kept) : std::move(seen));
  }
  return wishes;
}

bool ContextPlan::wants_kept(const ContextSequence& sequence, int64_t rank) const {
  return !holders_.keeps_what_it_computes() || holders_.decode_row(rank) == sequence.keeping_row;
}

std::vector<Interval> ContextPlan::prior_windows() const {
  std::vector<Interval> seen;
  for (const ContextSequence& sequence : sequences_)
    for (int64_t row = 0; row < mesh_.rows(); ++row) seen.push_back(prior_of(sequence, row));
  return windows_of(seen);
}

std::vector<Interval> ContextPlan::kept_windows() const {
  std::vector<Interval> kept;
  for (const ContextSequence& sequence : sequences_) kept.push_back(sequence.kept);
  return windows_of(kept);
}

std::vector<KvMove> ContextPlan::prior(int64_t rank, Interval window) const {
  std::vector<KvMove> moves;
  for (size_t index = 0; index < sequences_.size(); ++index)
    for (int64_t taker = 0; taker < std::ssize(mesh_.flat()); ++taker) {
      const Interval wanted = prior_of(sequences_[index], mesh_.row_of(taker)).intersect(window);
      const auto heads = holders_.computed(taker);
      for (int64_t head = 0; head < std::ssize(heads) && !wanted.empty(); ++head)
        for (int64_t share = 0; share < holders_.shares() && heads[static_cast<size_t>(head)] != -1; ++share) {
          const int64_t source = heads[static_cast<size_t>(head)];
          const int64_t giver = holders_.keeper_of(source, sequences_[index].keeping_row, share, taker);
          if (takes_part(rank, giver, taker))
            moves.push_back({.giver = giver,
                             .taker = taker,
                             .sequence = index,
                             .giver_head = index_of(holders_.kept(giver), source),
                             .taker_head = head,
                             .first = wanted.first,
                             .end = wanted.last + 1,
                             .share = {.ranks = holders_.shares(), .index = share}});
        }
    }
  return moves;
}

std::vector<KvMove> ContextPlan::missing(int64_t rank, Interval window) const {
  std::vector<KvMove> moves;
  if (holders_.keeps_what_it_computes()) return moves;
  for (int64_t taker = 0; taker < std::ssize(mesh_.flat()); ++taker)
    for (const int64_t head : holders_.missing(taker)) {
      const int64_t giver = holders_.computer_of(head, taker);
      for (size_t index = 0; index < sequences_.size() && takes_part(rank, giver, taker); ++index) {
        const Interval kept = sequences_[index].kept.intersect(window);
        if (holders_.decode_row(taker) != sequences_[index].keeping_row || kept.empty()) continue;
        moves.push_back({.giver = giver,
                         .taker = taker,
                         .sequence = index,
                         .giver_head = index_of(holders_.computed(giver), head),
                         .taker_head = index_of(holders_.kept(taker), head),
                         .first = kept.first,
                         .end = kept.last + 1,
                         .share = holders_.share(taker)});
      }
    }
  return moves;
}

std::vector<KvMove> ContextPlan::computed(int64_t rank, Interval tokens) const {
  std::vector<KvMove> moves;
  for (int64_t column = 0; column < mesh_.columns(); ++column) {
    if (rank != kAllRanks && mesh_.column_of(rank) != column) continue;
    for (int64_t row = 0; row < mesh_.rows(); ++row)
      for (int64_t reader = 0; reader < mesh_.rows(); ++reader) {
        const int64_t giver = mesh_.rank_at(row, column);
        const int64_t taker = mesh_.rank_at(reader, column);
        if (takes_part(rank, giver, taker)) add_computed(giver, taker, tokens, moves);
      }
  }
  return moves;
}

// Those of the giver's tokens that the taker wants.
void ContextPlan::add_computed(int64_t giver, int64_t taker, Interval tokens, std::vector<KvMove>& moves) const {
  const auto row = static_cast<size_t>(mesh_.row_of(giver));
  const auto reader = static_cast<size_t>(mesh_.row_of(taker));
  int64_t before = 0;
  for (size_t index = 0; index < sequences_.size(); ++index) {
    const ContextSequence& sequence = sequences_[index];
    const SpanShare& share = sequence.shares[row];
    const int64_t start = sequence.span.first_position;
    const auto& wanted = (wants_kept(sequence, taker) ? seen_or_kept_ : seen_)[index][reader];
    for (const Interval& positions : wanted) {
      const Interval chosen =
          Interval{share.count_before(positions.first - start), share.count_before(positions.last + 1 - start) - 1}
              .intersect({tokens.first - before, tokens.last - before});
      if (chosen.empty()) continue;
      moves.push_back({.giver = giver,
                       .taker = taker,
                       .sequence = index,
                       .heads = std::ssize(holders_.computed(giver)),
                       .first = start + share.at(chosen.first),
                       .end = start + share.at(chosen.last) + 1,
                       .stride = share.stride});
    }
    before += share.count;
  }
}

}  // namespace regard
