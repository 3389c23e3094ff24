// How keys and values get from the ranks that compute them to those that keep them, and back for later prompts' parts.
#include <algorithm>
#include <cstring>

#include "kernels/rows.h"
#include "layers/context_call.h"
#include "tensor/fail.h"

namespace regard {
namespace {

int64_t index_of(std::span<const int64_t> heads, int64_t head) {
  return std::find(heads.begin(), heads.end(), head) - heads.begin();
}

}  // namespace

int64_t ContextCall::scales_a_head(const KvFormat& format, int64_t heads, int64_t width) {
  const auto scales = static_cast<int64_t>(format.scales.size());
  if (scales == 0) return 0;
  if (format.scaling == KvScaling::per_head) return 1;
  const bool of_one = scales == width && heads > 1;
  return format.scaling == KvScaling::per_channel && !of_one ? width : 0;
}

// A rank's cache has the given scales of the heads that it keeps; those of others come from who keeps them.
KvFormat ContextCall::format_of_computed(const KvFormat& kept, int64_t width) const {
  const int64_t of_head = scales_a_head(kept, keeper_.config.num_key_value_heads, width);
  if (of_head == 0 || holders_.computes_what_it_keeps()) return kept;
  std::vector<std::vector<float>> scales(static_cast<size_t>(place_.ranks.size()), kept.scales);
  std::vector<std::span<std::byte>> parts(scales.size());
  for (size_t rank = 0; rank < parts.size(); ++rank) parts[rank] = std::as_writable_bytes(std::span(scales[rank]));
  place_.ranks.world().all_gather(std::as_bytes(std::span(kept.scales)), parts);
  KvFormat computed = kept;
  computed.scales.clear();
  for (const int64_t head : holders_.computed(rank_)) {
    // A head of zeros is nobody's: any scale will do.
    const int64_t keeper = head == -1 ? rank_ : holders_.keeper_of(head, 0, 0, rank_);
    const int64_t index = head == -1 ? 0 : index_of(holders_.kept(keeper), head);
    const auto first = scales[static_cast<size_t>(keeper)].begin() + index * of_head;
    computed.scales.insert(computed.scales.end(), first, first + of_head);
  }
  return computed;
}

// What was kept before the spans and this row's tokens see, bit for bit as it is stored. Every rank goes through the
// same list of what is wanted by whom, and takes its part in it.
void ContextCall::fetch_prior() {
  if (input_.cache == nullptr) return;
  const auto parts = stored_parts(input_.cache->read_stored(0, 0, 0));
  Messages messages(place_.ranks.size());
  for (Sequence& sequence : sequences_) {
    make_prior(sequence);
    send_prior(sequence, parts, messages);
  }
  if (!wants_prior()) return;
  messages.exchange(place_.ranks.world());
  for (const Sequence& sequence : sequences_)
    for_each_prior(sequence, [&](const PriorPart& wanted) {
      if (wanted.reader != rank_) return;
      for (int64_t p = wanted.from; p < wanted.end; ++p)
        if (wanted.share.owns(p))
          for (const StoredPart& part : parts)
            messages.take(wanted.keeper, part.at(sequence.prior, p - sequence.origin, wanted.index), part.bytes);
    });
}

bool ContextCall::wants_prior() const {
  return std::ranges::any_of(sequences_, [&](const Sequence& sequence) {
    return std::ranges::any_of(sequence.prior_from,
                               [&](int64_t from) { return from < input_.spans[sequence.span].first_position; });
  });
}

void ContextCall::make_prior(Sequence& sequence) const {
  const int64_t count = std::max<int64_t>(0, input_.spans[sequence.span].first_position - sequence.origin);
  sequence.prior = stored_like(input_.cache->read_stored(0, 0, 0), count, config_.num_key_value_heads);
}

void ContextCall::send_prior(const Sequence& sequence, std::span<const StoredPart> parts, Messages& messages) const {
  int64_t token_bytes = 0;
  for (const StoredPart& part : parts) token_bytes += part.bytes;
  const TokenShare own = keeper_.token_share();
  const int64_t first_kept = std::ranges::min(sequence.prior_from);
  const int64_t end = input_.spans[sequence.span].first_position;
  KvCache::StoredTokens kept;
  const int64_t base = own.count_below(first_kept);
  if (sequence.own_slot && first_kept < end)
    kept = input_.cache->read_stored(*sequence.own_slot, base, own.count_below(end) - base);
  for_each_prior(sequence, [&](const PriorPart& wanted) {
    if (wanted.reader != rank_ && wanted.keeper != rank_) return;
    const int64_t head = index_of(holders_.kept(rank_), wanted.head);
    for (int64_t p = wanted.from; p < wanted.end; ++p) {
      if (!wanted.share.owns(p)) continue;
      if (wanted.reader == rank_) messages.expect(wanted.keeper, token_bytes);
      if (wanted.keeper != rank_) continue;
      for (const StoredPart& part : parts)
        messages.send(wanted.reader, part.at(kept, own.count_below(p) - base, head), part.bytes);
    }
  });
}

template <class Visit>
void ContextCall::for_each_prior(const Sequence& sequence, Visit visit) const {
  const RankMesh mesh(place_.ranks.size(), place_.stage.degree, place_.ranks.config().switch_cc);
  const int64_t end = input_.spans[sequence.span].first_position;
  for (int64_t reader = 0; reader < place_.ranks.size(); ++reader) {
    const int64_t from = sequence.prior_from[static_cast<size_t>(mesh.row_of(reader))];
    const auto heads = holders_.computed(reader);
    for (size_t index = 0; index < heads.size() && from < end; ++index)
      for (int64_t share = 0; share < holders_.shares() && heads[index] != -1; ++share)
        visit(PriorPart{.reader = reader,
                        .keeper = holders_.keeper_of(heads[index], sequence.keeping_row, share, reader),
                        .head = heads[index],
                        .index = static_cast<int64_t>(index),
                        .share = {.ranks = holders_.shares(), .index = share},
                        .from = from,
                        .end = end});
  }
}

// Heads that a rank keeps but does not compute come from one that does, in the types in which rows exchange them.
void ContextCall::fetch_missing_heads() {
  if (input_.cache == nullptr || holders_.keeps_what_it_computes()) return;
  const auto kept = holders_.kept(rank_);
  const int64_t tokens = keys_.shape()[0];
  missing_keys_.resize(kept.size());
  missing_values_.resize(kept.size());
  Messages messages(place_.ranks.size());
  std::vector<std::byte> bytes(static_cast<size_t>(token_bytes({.first = 0, .count = 1})));
  const auto for_each_missing = [&](auto&& visit) {
    for (int64_t reader = 0; reader < place_.ranks.size(); ++reader)
      for (const int64_t head : holders_.missing(reader)) {
        const int64_t computer = holders_.computer_of(head, reader);
        if (reader != rank_ && computer != rank_) continue;
        for (const Sequence& sequence : sequences_)
          if (holders_.decode_row(reader) == sequence.keeping_row)
            for (int64_t offset = sequence.kept.first; offset <= sequence.kept.last; ++offset)
              if (holders_.share(reader).owns(input_.spans[sequence.span].first_position + offset))
                visit(reader, computer, head, sequence.first_token + offset);
      }
  };
  for_each_missing([&](int64_t reader, int64_t computer, int64_t head, int64_t token) {
    if (reader == rank_) messages.expect(computer, std::ssize(bytes));
    if (computer != rank_) return;
    pack_token(token, {.first = index_of(holders_.computed(rank_), head), .count = 1}, bytes.data());
    messages.send(reader, bytes.data(), std::ssize(bytes));
  });
  messages.exchange(place_.ranks.world());
  for_each_missing([&](int64_t reader, int64_t computer, int64_t head, int64_t token) {
    if (reader != rank_) return;
    const auto index = static_cast<size_t>(index_of(kept, head));
    if (missing_keys_[index].empty()) {
      missing_keys_[index] = Tensor(DType::f32, {tokens, config_.head_dim});
      missing_values_[index] = Tensor(DType::f32, {tokens, config_.v_head_dim});
    }
    messages.take(computer, bytes.data(), std::ssize(bytes));
    unpack_token(bytes.data(), token, {.first = 0, .count = 1}, missing_keys_[index], missing_values_[index]);
  });
}

// Appends this rank's heads and tokens to its cache.
void ContextCall::keep() {
  if (input_.cache == nullptr) return;
  KvCache& cache = *input_.cache;
  const TokenShare share = keeper_.token_share();
  for (const Sequence& sequence : sequences_) {
    if (!sequence.own_slot) continue;
    const Span& span = input_.spans[sequence.span];
    const auto [keys, values] = kept_rows(sequence);
    const int64_t tokens = keys.shape()[0];
    const int64_t place = share.count_below(span.first_position);
    if (cache.length(*sequence.own_slot) > place) cache.truncate(*sequence.own_slot, place);
    for (int64_t first = 0; first < tokens; first += KvCache::kTokensAtOnce) {
      const int64_t count = std::min(KvCache::kTokensAtOnce, tokens - first);
      cache.append({.slot = *sequence.own_slot, .first_position = place + first, .count = count},
                   keys.view().slice(0, first, count), values.view().slice(0, first, count), workspace_.threads());
      cache.trim(*sequence.own_slot);
    }
  }
}

// [tokens, heads, width] of what this rank keeps of a sequence's new tokens. Tokens that no later one sees may be zero.
std::pair<Tensor, Tensor> ContextCall::kept_rows(const Sequence& sequence) const {
  const Span& span = input_.spans[sequence.span];
  const TokenShare share = keeper_.token_share();
  const auto kept = holders_.kept(rank_);
  const auto computed = holders_.computed(rank_);
  std::vector<int64_t> tokens;
  for (int64_t offset = 0; offset < span.count; ++offset)
    if (share.owns(span.first_position + offset)) tokens.push_back(sequence.first_token + offset);
  const auto gather = [&](const Tensor& rows, const std::vector<Tensor>& missing, int64_t width) {
    const auto heads = static_cast<int64_t>(kept.size());
    Tensor out(DType::f32, {static_cast<int64_t>(tokens.size()), heads, width});
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t source = kept[static_cast<size_t>(head)];
      const int64_t index = index_of(computed, source);
      const bool fetched = index == static_cast<int64_t>(computed.size());
      const auto place = static_cast<size_t>(index_of(kept, source));
      if (source == -1 || (fetched && missing[place].empty())) continue;
      for (size_t i = 0; i < tokens.size(); ++i) {
        const float* from = fetched ? missing[place].view().as<float>() + tokens[i] * width
                                    : rows.view().as<float>() + tokens[i] * rows.shape()[1] + index * width;
        std::copy_n(from, width, out.view().as<float>() + (static_cast<int64_t>(i) * heads + head) * width);
      }
    }
    return out;
  };
  return {gather(keys_, missing_keys_, config_.head_dim), gather(values_, missing_values_, config_.v_head_dim)};
}

}  // namespace regard
