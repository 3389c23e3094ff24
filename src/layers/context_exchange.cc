#include "layers/context_exchange.h"

#include <algorithm>
#include <numeric>

#include "kernels/workspace.h"

namespace regard {
namespace {

constexpr int64_t kRoundTokens = KvCache::kTokensAtOnce;

int64_t index_of(std::span<const int64_t> heads, int64_t head) {
  return std::find(heads.begin(), heads.end(), head) - heads.begin();
}

// How many given scales each of so many heads has for itself; 0: none, or all heads have the same.
int64_t scales_a_head(const KvFormat& format, int64_t heads, int64_t width) {
  const auto scales = static_cast<int64_t>(format.scales.size());
  if (scales == 0) return 0;
  if (format.scaling == KvScaling::per_head) return 1;
  const bool of_one = scales == width && heads > 1;
  return format.scaling == KvScaling::per_channel && !of_one ? width : 0;
}

std::vector<int64_t> all_of(const Ranks& ranks) {
  std::vector<int64_t> all(static_cast<size_t>(ranks.size()));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

ContextExchange::ContextExchange(const ContextPlan& plan, const Mask& mask, const AttentionShard& computing,
                                 const AttentionShard& keeping, const RankPlace& place, KvCache* cache,
                                 int64_t slots_a_row, Workspace& workspace)
    : plan_(plan),
      mask_(mask),
      computing_(computing),
      keeping_(keeping),
      place_(place),
      cache_(cache),
      slots_a_row_(slots_a_row),
      workspace_(workspace),
      rank_(place.ranks.rank()) {
  for (int64_t row = 0; row < place.tokens.rows(); ++row)
    rounds_ = std::max(rounds_, (place.tokens.count_of(row) + kRoundTokens - 1) / kRoundTokens);
  make_context(mask);
  const auto row = static_cast<size_t>(place.stage.row);
  for (size_t i = 0; i < plan.sequences().size(); ++i) {
    const ContextSequence& sequence = plan.sequences()[i];
    const SpanShare& share = sequence.shares[row];
    if (share.count == 0) continue;
    const Span& span = sequence.span;
    const bool skipped = span.slot == -1;
    spans_.push_back({.slot = skipped ? -1 : held_[i].front().slot, .count = share.count});
    courses_.push_back({.origin = skipped ? 0 : held_[i].front().origin,
                        .first = span.first_position + share.first,
                        .stride = share.stride,
                        .end = span.first_position + span.count,
                        .prefix_end = span.prefix_end()});
  }
  fetch_prior();
}

void ContextExchange::make_context(const Mask& mask) {
  const AttentionConfig& c = computing_.config;
  const KvSpec spec{.num_key_value_heads = c.num_key_value_heads, .head_dim = c.head_dim, .v_head_dim = c.v_head_dim};
  const auto row = static_cast<size_t>(place_.stage.row);
  held_.resize(plan_.sequences().size());
  KvCacheOptions options{.slots = 0, .capacity = 1};
  if (cache_ != nullptr) {
    options.keys = format_of_computed(cache_->key_format(), c.head_dim);
    options.values = format_of_computed(cache_->value_format(), c.v_head_dim);
  }
  for (size_t i = 0; i < held_.size(); ++i) {
    const ContextSequence& sequence = plan_.sequences()[i];
    const Interval kept = plan_.wants_kept(sequence, rank_) ? sequence.kept : Interval{};
    const Interval& seen = sequence.seen[row];
    // Without a limit to what is seen, what is kept goes on where that ends.
    if (mask.reach() || seen.empty() || kept.empty()) {
      add_held(i, seen);
      add_held(i, kept);
    } else {
      add_held(i, {std::min(seen.first, kept.first), std::max(seen.last, kept.last)});
    }
    for (Held& held : held_[i]) {
      held.slot = options.slots++;
      options.capacity = std::max(options.capacity, held.positions.last + 1 - held.origin);
    }
  }
  options.slots = std::max<int64_t>(1, options.slots);
  context_.emplace(KvCache::contiguous(options, spec));
  for (const auto& of_sequence : held_)
    for (const Held& held : of_sequence) context_->extend(held.slot, 0, held.positions.last + 1 - held.origin);
  options.slots = 1;
  options.capacity = kRoundTokens;
  piece_.emplace(KvCache::contiguous(options, spec));
}

// Key blocks of the context are key blocks of the sequence.
void ContextExchange::add_held(size_t sequence, Interval positions) {
  if (positions.empty()) return;
  const int64_t begin = plan_.sequences()[sequence].begin;
  const int64_t origin = positions.first - (positions.first - begin) % TokenShare::kRun;
  held_[sequence].push_back({.slot = 0, .positions = positions, .origin = origin});
}

// A rank's cache has the given scales of the heads that it keeps; those of others come from who keeps them.
KvFormat ContextExchange::format_of_computed(const KvFormat& kept, int64_t width) const {
  const KvHolders& holders = plan_.holders();
  const int64_t of_head = scales_a_head(kept, keeping_.config.num_key_value_heads, width);
  if (of_head == 0 || holders.computes_what_it_keeps()) return kept;
  std::vector<std::vector<float>> scales(static_cast<size_t>(place_.ranks.size()), kept.scales);
  std::vector<std::span<std::byte>> parts(scales.size());
  for (size_t rank = 0; rank < parts.size(); ++rank) parts[rank] = std::as_writable_bytes(std::span(scales[rank]));
  place_.ranks.world().all_gather(std::as_bytes(std::span(kept.scales)), parts);
  KvFormat computed = kept;
  computed.scales.clear();
  for (const int64_t head : holders.computed(rank_)) {
    // A head of zeros is nobody's: any scale will do.
    const int64_t keeper = head == -1 ? rank_ : holders.keeper_of(head, 0, 0, rank_);
    const int64_t index = head == -1 ? 0 : index_of(holders.kept(keeper), head);
    const auto first = scales[static_cast<size_t>(keeper)].begin() + index * of_head;
    computed.scales.insert(computed.scales.end(), first, first + of_head);
  }
  return computed;
}

std::optional<int64_t> ContextExchange::own_slot(const ContextSequence& sequence) const {
  if (cache_ == nullptr || sequence.span.slot == -1 || sequence.keeping_row != place_.ranks.decode().row)
    return std::nullopt;
  return sequence.span.slot - (place_.ranks.decode().degree > 1 ? sequence.keeping_row * slots_a_row_ : 0);
}

const ContextExchange::Held* ContextExchange::held(size_t sequence, int64_t position) const {
  for (const Held& held : held_[sequence])
    if (held.positions.contains(position)) return &held;
  return nullptr;
}

void ContextExchange::put(size_t sequence, int64_t position, int64_t head, const std::byte* from) {
  for (const Held& held : held_[sequence])
    if (held.positions.contains(position)) context_->put_stored(held.slot, position - held.origin, head, from);
}

// What was kept before the spans and this row's tokens see. Every rank takes its part in each window.
void ContextExchange::fetch_prior() {
  if (cache_ == nullptr) return;
  const TokenShare own = keeping_.token_share();
  for (const Interval& window : plan_.prior_windows()) {
    KvTransfer transfer(plan_.prior(rank_, window), rank_, all_of(place_.ranks), context_->stored_bytes(),
                        [&](const KvMove& move, int64_t, int64_t position, int64_t head, std::byte* to) {
                          const auto slot = own_slot(plan_.sequences()[move.sequence]);
                          cache_->get_stored(*slot, own.count_below(position), head, to);
                        });
    transfer.start(place_.ranks.world());
    transfer.finish([&](const KvMove& move, int64_t, int64_t position, int64_t head, const std::byte* from) {
      put(move.sequence, position, head, from);
    });
  }
}

// The round that brings the last key which some of this row's tokens see.
int64_t ContextExchange::last_round_for(ElementRange tokens) const {
  int64_t last = -1;
  int64_t token = 0;
  std::vector<int64_t> before(static_cast<size_t>(place_.tokens.rows()), 0);
  for (const ContextSequence& sequence : plan_.sequences()) {
    const Span& span = sequence.span;
    const SpanShare& own = sequence.shares[static_cast<size_t>(place_.stage.row)];
    const int64_t end = std::min(tokens.end() - token, own.count);  // of the share's tokens
    const bool asked = span.slot != -1 && end > std::max<int64_t>(0, tokens.first - token);
    int64_t seen = 0;  // tokens of the span
    if (asked)
      seen = mask_.visible(span.first_position + own.at(end - 1), span.first_position + span.count, span.prefix_end())
                 .last +
             1 - span.first_position;
    for (size_t row = 0; row < before.size(); ++row) {
      const SpanShare& share = sequence.shares[row];
      if (const int64_t count = share.count_before(seen); count > 0)
        last = std::max(last, (before[row] + count - 1) / kRoundTokens);
      before[row] += share.count;
    }
    token += own.count;
  }
  return last;
}

void ContextExchange::bring(ElementRange tokens, const Project& project) {
  for (const int64_t last = last_round_for(tokens); arrived_ <= last;) advance(project);
}

// While attention works on what is there, the next round travels.
void ContextExchange::advance(const Project& project) {
  if (!travelling_) start_round(project);
  travelling_->finish([&](const KvMove& move, int64_t, int64_t position, int64_t head, const std::byte* from) {
    put(move.sequence, position, head, from);
  });
  travelling_.reset();
  ++arrived_;
  if (arrived_ < rounds_) start_round(project);
}

void ContextExchange::start_round(const Project& project) {
  const int64_t own_tokens = place_.tokens.count_of(place_.stage.row);
  const int64_t first = std::min(arrived_ * kRoundTokens, own_tokens);
  const ElementRange tokens{.first = first, .count = std::min(kRoundTokens, own_tokens - first)};
  if (tokens.count > 0) {
    const KeysValues made = project(tokens);
    piece_->append({.slot = 0, .first_position = 0, .count = tokens.count}, made.keys, made.values,
                   workspace_.threads());
  }
  // Where the row's tokens of each sequence begin.
  std::vector<int64_t> starts;
  int64_t start = 0;
  for (const ContextSequence& sequence : plan_.sequences()) {
    starts.push_back(start);
    start += sequence.shares[static_cast<size_t>(place_.stage.row)].count;
  }
  const auto get = [&](const KvMove& move, int64_t index, int64_t, int64_t head, std::byte* to) {
    const ContextSequence& sequence = plan_.sequences()[move.sequence];
    const SpanShare& share = sequence.shares[static_cast<size_t>(place_.stage.row)];
    const int64_t first_token = starts[move.sequence] + share.count_before(move.first - sequence.span.first_position);
    piece_->get_stored(0, first_token + index - tokens.first, head, to);
  };
  const Interval round{arrived_ * kRoundTokens, (arrived_ + 1) * kRoundTokens - 1};
  travelling_.emplace(plan_.computed(rank_, round), rank_, column_members(), context_->stored_bytes(), get);
  travelling_->start(*place_.stage.in_column);
}

std::vector<int64_t> ContextExchange::column_members() const {
  const RankMesh mesh(place_.ranks.size(), place_.stage.degree, place_.ranks.config().switch_cc);
  std::vector<int64_t> members;
  for (int64_t row = 0; row < mesh.rows(); ++row) members.push_back(mesh.rank_at(row, place_.stage.column));
  return members;
}

void ContextExchange::finish(const Project& project) {
  while (arrived_ < rounds_) advance(project);
  keep();
}

void ContextExchange::keep() {
  if (cache_ == nullptr) return;
  for (const ContextSequence& sequence : plan_.sequences()) {
    const auto slot = own_slot(sequence);
    if (!slot) continue;
    const int64_t place = keeping_.token_share().count_below(sequence.span.first_position);
    if (cache_->length(*slot) > place) cache_->truncate(*slot, place);
  }
  for (const Interval& window : plan_.kept_windows()) keep_window(window);
  for (const ContextSequence& sequence : plan_.sequences())
    extend(sequence, sequence.span.first_position + sequence.span.count);
}

// Heads that a rank keeps but does not compute come from one that does.
void ContextExchange::keep_window(Interval window) {
  for (size_t i = 0; i < plan_.sequences().size(); ++i) {
    const ContextSequence& sequence = plan_.sequences()[i];
    const Interval kept = sequence.kept.intersect(window);
    if (kept.empty() || !own_slot(sequence)) continue;
    extend(sequence, kept.last + 1);
    copy_kept(i, kept);
  }
  const KvHolders& holders = plan_.holders();
  if (holders.keeps_what_it_computes()) return;
  KvTransfer transfer(plan_.missing(rank_, window), rank_, all_of(place_.ranks), context_->stored_bytes(),
                      [&](const KvMove& move, int64_t, int64_t position, int64_t head, std::byte* to) {
                        const Held* from = held(move.sequence, position);
                        context_->get_stored(from->slot, position - from->origin, head, to);
                      });
  transfer.start(place_.ranks.world());
  const auto kept = holders.kept(rank_);
  transfer.finish([&](const KvMove& move, int64_t, int64_t position, int64_t head, const std::byte* from) {
    const auto slot = own_slot(plan_.sequences()[move.sequence]);
    // A head may be kept more than once.
    for (int64_t place = head; place < std::ssize(kept); ++place)
      if (kept[static_cast<size_t>(place)] == kept[static_cast<size_t>(head)])
        cache_->put_stored(*slot, keeping_.token_share().count_below(position), place, from);
  });
}

// Makes this rank's share of a sequence's tokens up to position `end`. Those that no later token sees stay unknown.
void ContextExchange::extend(const ContextSequence& sequence, int64_t end) {
  const auto slot = own_slot(sequence);
  if (!slot) return;
  const int64_t length = keeping_.token_share().count_below(end);
  while (cache_->length(*slot) < length) {
    const int64_t have = cache_->length(*slot);
    cache_->extend(*slot, have, std::min(length, have + KvCache::kTokensAtOnce));
    cache_->trim(*slot);
  }
}

void ContextExchange::copy_kept(size_t sequence, Interval positions) {
  const auto slot = own_slot(plan_.sequences()[sequence]);
  const TokenShare share = keeping_.token_share();
  const auto kept = plan_.holders().kept(rank_);
  const auto computed = plan_.holders().computed(rank_);
  const std::vector<std::byte> zeros(static_cast<size_t>(cache_->stored_bytes()));
  row_.resize(zeros.size());
  for (int64_t head = 0; head < std::ssize(kept); ++head) {
    const int64_t source = kept[static_cast<size_t>(head)];
    const int64_t index = index_of(computed, source);
    if (source != -1 && index == std::ssize(computed)) continue;
    for (int64_t position = positions.first; position <= positions.last; ++position) {
      if (!share.owns(position)) continue;
      const Held* from = held(sequence, position);
      if (source != -1) context_->get_stored(from->slot, position - from->origin, index, row_.data());
      cache_->put_stored(*slot, share.count_below(position), head, source == -1 ? zeros.data() : row_.data());
    }
  }
}

}  // namespace regard
