#include "layers/context_call.h"

#include <algorithm>
#include <cstring>

#include "kernels/rows.h"
#include "kernels/workspace.h"
#include "layers/head_rows.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

constexpr int64_t kPieceTokens = KvCache::kTokensAtOnce;

// Keys and values travel as the cache will store them, where that is a plain type: it rounds them once or twice to the
// same numbers.
DType wire_of(const KvCache* cache, const KvFormat& (KvCache::*format)() const) {
  if (cache == nullptr) return DType::f32;
  const DType dtype = (cache->*format)().dtype;
  return dtype == DType::bf16 || dtype == DType::f16 ? dtype : DType::f32;
}

// Some heads of the rows of a matrix [tokens, heads * width].
Tensor columns_of(const Tensor& rows, ElementRange tokens, int64_t first_column, int64_t columns) {
  Tensor part(DType::f32, {tokens.count, columns});
  const int64_t width = rows.shape()[1];
  for (int64_t i = 0; i < tokens.count; ++i)
    std::copy_n(rows.view().as<float>() + (tokens.first + i) * width + first_column, columns,
                part.view().as<float>() + i * columns);
  return part;
}

// What is stored of heads first.. of tokens, all of one cache.
KvCache::StoredTokens heads_of(const KvCache::StoredTokens& tokens, int64_t first, int64_t count) {
  const auto of = [&](const Tensor& all) {
    if (all.empty()) return Tensor();
    const int64_t heads = all.shape()[1];
    const bool scales = all.shape().rank() == 2;
    const int64_t width = (scales ? 1 : all.shape()[2]) * static_cast<int64_t>(size_of(all.dtype()));
    Tensor part(all.dtype(), scales ? Shape{all.shape()[0], count} : Shape{all.shape()[0], count, all.shape()[2]});
    for (int64_t token = 0; token < all.shape()[0]; ++token)
      std::memcpy(part.view().data() + token * count * width, all.view().data() + (token * heads + first) * width,
                  static_cast<size_t>(count * width));
    return part;
  };
  return {of(tokens.keys), of(tokens.values), of(tokens.key_scales), of(tokens.value_scales)};
}

}  // namespace

ContextCall::ContextCall(const Attention& attention, const AttentionInput& input, std::span<const size_t> chosen,
                         const RankPlace& place, int64_t slots_a_row)
    : attention_(attention),
      shard_(*attention.prefill_),
      keeper_(*attention.decode_),
      config_(shard_.config),
      input_(input),
      place_(place),
      workspace_(*input.workspace),
      holders_(place.ranks.config(), shard_, keeper_),
      slots_a_row_(slots_a_row),
      rank_(place.ranks.rank()),
      row_(place.stage.row),
      mask_(Mask::of(config_)),
      chosen_(chosen.begin(), chosen.end()) {
  const RankMesh mesh(place.ranks.size(), place.stage.degree, place.ranks.config().switch_cc);
  for (int64_t row = 0; row < place.tokens.rows(); ++row)
    decode_rows_.push_back(holders_.decode_row(mesh.rank_at(row, place.stage.column)));
  find_sequences();
  check();
}

void ContextCall::run() {
  if (input_.cache != nullptr) {
    key_format_ = format_of_computed(input_.cache->key_format(), config_.head_dim);
    value_format_ = format_of_computed(input_.cache->value_format(), config_.v_head_dim);
  }
  fetch_prior();
  project();
  place_own_rows();
  if (place_.ranks.config().kv_exchange == KvExchange::ring && place_.stage.degree > 1 && !mask_.reach()) {
    attend_while_heads_travel();
  } else {
    exchange_all();
    const HeadRange all{0, config_.num_key_value_heads};
    attend(all, make_context(all), {.first = 0, .count = queries_.shape()[0]});
  }
  fetch_missing_heads();
  keep();
  write_output();
}

void ContextCall::find_sequences() {
  int64_t first_token = 0;
  for (const size_t span : chosen_) {
    if (input_.spans[span].slot != -1) sequences_.push_back(sequence_of(span, first_token));
    first_token += input_.spans[span].count;
  }
  for (const SpanShare& share : place_.tokens.of_row(row_))
    for (int64_t i = 0; i < share.count; ++i)
      positions_.push_back(input_.spans[share.span].first_position + share.first + i * share.stride);
}

ContextCall::Sequence ContextCall::sequence_of(size_t index, int64_t first_token) const {
  const Span& span = input_.spans[index];
  const int64_t end = span.first_position + span.count;
  Sequence sequence{.span = index, .first_token = first_token, .keeping_row = 0, .own_slot = {}};
  if (place_.ranks.decode().degree > 1) sequence.keeping_row = span.slot / slots_a_row_;
  if (input_.cache != nullptr && sequence.keeping_row == place_.ranks.decode().row)
    sequence.own_slot = span.slot - sequence.keeping_row * slots_a_row_;
  if (input_.cache != nullptr)
    sequence.kept = {std::max<int64_t>(0, input_.cache->first_kept(end) - span.first_position), span.count - 1};
  for (int64_t row = 0; row < place_.tokens.rows(); ++row) {
    const auto& of_row = place_.tokens.of_row(row);
    const auto found = std::ranges::find(of_row, index, &SpanShare::span);
    const SpanShare share =
        found == of_row.end() ? SpanShare{.span = index, .first = 0, .stride = 1, .count = 0} : *found;
    Interval seen;
    if (share.count > 0)
      seen = {mask_.visible(span.first_position + share.first, end, span.prefix_end()).first,
              mask_.visible(span.first_position + share.last(), end, span.prefix_end()).last};
    sequence.shares.push_back(share);
    sequence.prior_from.push_back(seen.empty() ? span.first_position : std::min(seen.first, span.first_position));
    if (row == row_) sequence.seen = seen;
  }
  sequence.origin = sequence.seen.empty() ? 0 : sequence.seen.first / TokenShare::kRun * TokenShare::kRun;
  return sequence;
}

// What tokens the caches can take is known by now: RankedCall::agree.
void ContextCall::check() const {
  if (input_.cache == nullptr) return;
  const KvCache& cache = *input_.cache;
  const AttentionConfig& kept = keeper_.config;
  require(cache.num_key_value_heads() == kept.num_key_value_heads && cache.head_dim() == kept.head_dim &&
              cache.v_head_dim() == kept.v_head_dim,
          "attention: the cache has {} KV heads of {} and {}, but the layer has {} of {} and {} on this rank",
          cache.num_key_value_heads(), cache.head_dim(), cache.v_head_dim(), kept.num_key_value_heads, kept.head_dim,
          kept.v_head_dim);
}

// Queries, keys and values of this row's tokens.
void ContextCall::project() {
  const auto tokens = static_cast<int64_t>(positions_.size());
  const auto& c = config_;
  queries_ = Tensor(DType::f32, {tokens, c.num_attention_heads * c.head_dim});
  attended_ = Tensor(DType::f32, {tokens, c.num_attention_heads * c.v_head_dim});
  own_keys_ = Tensor(DType::f32, {tokens, c.num_key_value_heads * c.head_dim});
  own_values_ = Tensor(DType::f32, {tokens, c.num_key_value_heads * c.v_head_dim});
  const auto rotated_by =
      input_.rotary_position_ids.empty() ? std::span<const int64_t>(positions_) : input_.rotary_position_ids;
  RowAngles angles;
  if (attention_.rotary_) angles = angles_of(*attention_.rotary_, rotated_by, workspace_);
  for (int64_t first = 0; first < tokens; first += kPieceTokens) {
    const int64_t count = std::min(kPieceTokens, tokens - first);
    const HeadRows rows{.q = queries_.view().slice(0, first, count),
                        .k = own_keys_.view().slice(0, first, count),
                        .v = own_values_.view().slice(0, first, count)};
    shard_.qkv.forward(normed_rows(input_.hidden_states.slice(0, first, count)), rows.q, rows.k, rows.v, workspace_);
    HeadPlaces places{
        .positions =
            std::span<const int64_t>(positions_).subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
        .cos = {},
        .sin = {}};
    if (attention_.rotary_) {
      places.cos = angles.cos.slice(0, first, count);
      places.sin = angles.sin.slice(0, first, count);
    }
    prepare_heads(shard_, places, rows, workspace_.threads());
  }
}

ConstTensorView ContextCall::normed_rows(ConstTensorView x) {
  if (input_.rmsnorm.empty()) return x;
  const int64_t width = x.size(1);
  const TensorView normed = workspace_.memory().matrix(Memory::Piece::normed, x.size(0), width);
  for (int64_t i = 0; i < x.size(0); ++i) {
    float* row = normed.as<float>() + i * width;
    kernels::load_floats(x.slice(0, i, 1).data(), x.dtype(), width, row);
    kernels::rms_norm(row, input_.rmsnorm.as<float>(), *config_.rms_norm_eps, width, row);
  }
  return normed;
}

// Whether a row's attention sees one of the sequence's new tokens.
bool ContextCall::sees(int64_t row, const Sequence& sequence, int64_t offset) const {
  const SpanShare& share = sequence.shares[static_cast<size_t>(row)];
  if (share.count == 0) return false;
  const Span& span = input_.spans[sequence.span];
  const Interval queries =
      mask_.seen_by(span.first_position + offset, span.first_position + span.count, span.prefix_end());
  const int64_t first = share.from(queries.first - span.first_position);
  return first <= share.last() && first <= queries.last - span.first_position;
}

// Whether a row needs one of the sequence's new tokens: for its attention, or for the cache of a rank of this column.
bool ContextCall::wants(int64_t row, const Sequence& sequence, int64_t offset) const {
  if (sees(row, sequence, offset)) return true;
  if (!sequence.kept.contains(offset)) return false;
  return !holders_.keeps_what_it_computes() || decode_rows_[static_cast<size_t>(row)] == sequence.keeping_row;
}

// Calls visit(index among the row's tokens, index among the tokens of the stage) for the row's tokens that `reader`, a
// row, wants; for all of them where it is kAllRows.
template <class Visit>
void ContextCall::for_each_row_token(int64_t row, int64_t reader, Visit visit) const {
  int64_t index = 0;
  for (const SpanShare& share : place_.tokens.of_row(row)) {
    const auto sequence = std::ranges::find(sequences_, share.span, &Sequence::span);
    for (int64_t i = 0; i < share.count; ++i, ++index) {
      const int64_t offset = share.first + i * share.stride;
      if (sequence != sequences_.end() && (reader == kAllRows || wants(reader, *sequence, offset)))
        visit(index, sequence->first_token + offset);
    }
  }
}

void ContextCall::place_own_rows() {
  int64_t tokens = 0;
  for (const size_t span : chosen_) tokens += input_.spans[span].count;
  keys_ = Tensor(DType::f32, {tokens, own_keys_.shape()[1]});
  values_ = Tensor(DType::f32, {tokens, own_values_.shape()[1]});
  const auto copy = [](const Tensor& from, int64_t index, const Tensor& to, int64_t place) {
    const int64_t width = from.shape()[1];
    std::copy_n(from.view().as<float>() + index * width, width, to.view().as<float>() + place * width);
  };
  for_each_row_token(row_, kAllRows, [&](int64_t index, int64_t place) {
    copy(own_keys_, index, keys_, place);
    copy(own_values_, index, values_, place);
  });
}

int64_t ContextCall::token_bytes(HeadRange heads) const {
  const auto bytes = [&](DType dtype, int64_t width) {
    return heads.count * width * static_cast<int64_t>(size_of(dtype));
  };
  return bytes(wire_of(input_.cache, &KvCache::key_format), config_.head_dim) +
         bytes(wire_of(input_.cache, &KvCache::value_format), config_.v_head_dim);
}

// Keys and values of a token of the stage, as they travel.
void ContextCall::pack_token(int64_t token, HeadRange heads, std::byte* to) const {
  const auto add = [&](const Tensor& rows, DType wire, int64_t width) {
    kernels::store_floats(rows.view().as<float>() + token * rows.shape()[1] + heads.first * width, heads.count * width,
                          wire, to);
    to += static_cast<size_t>(heads.count * width) * size_of(wire);
  };
  add(keys_, wire_of(input_.cache, &KvCache::key_format), config_.head_dim);
  add(values_, wire_of(input_.cache, &KvCache::value_format), config_.v_head_dim);
}

void ContextCall::unpack_token(const std::byte* from, int64_t token, HeadRange heads, const Tensor& keys,
                               const Tensor& values) const {
  const auto take = [&](const Tensor& rows, DType wire, int64_t width) {
    kernels::load_floats(from, wire, heads.count * width,
                         rows.view().as<float>() + token * rows.shape()[1] + heads.first * width);
    from += static_cast<size_t>(heads.count * width) * size_of(wire);
  };
  take(keys, wire_of(input_.cache, &KvCache::key_format), config_.head_dim);
  take(values, wire_of(input_.cache, &KvCache::value_format), config_.v_head_dim);
}

// Those of `row`'s tokens that `reader` wants, token by token.
std::vector<std::byte> ContextCall::packed(int64_t row, int64_t reader, HeadRange heads) const {
  std::vector<std::byte> bytes;
  for_each_row_token(row, reader, [&](int64_t, int64_t place) {
    const size_t at = bytes.size();
    bytes.resize(at + static_cast<size_t>(token_bytes(heads)));
    pack_token(place, heads, bytes.data() + at);
  });
  return bytes;
}

std::vector<std::byte> ContextCall::room_for(int64_t row, int64_t reader, HeadRange heads) const {
  int64_t tokens = 0;
  for_each_row_token(row, reader, [&](int64_t, int64_t) { ++tokens; });
  return std::vector<std::byte>(static_cast<size_t>(tokens * token_bytes(heads)));
}

void ContextCall::unpack(int64_t row, int64_t reader, HeadRange heads, std::span<const std::byte> bytes) {
  const std::byte* from = bytes.data();
  for_each_row_token(row, reader, [&](int64_t, int64_t place) {
    unpack_token(from, place, heads, keys_, values_);
    from += token_bytes(heads);
  });
}

// Every row sends each other one what it wants [PAR-22]: of windows and chunks, the neighbours' tokens.
void ContextCall::exchange_all() {
  const HeadRange all{0, config_.num_key_value_heads};
  const int64_t rows = place_.tokens.rows();
  std::vector<std::vector<std::byte>> sent, received;
  for (int64_t row = 0; row < rows; ++row) {
    sent.push_back(row == row_ ? std::vector<std::byte>() : packed(row_, row, all));
    received.push_back(row == row_ ? std::vector<std::byte>() : room_for(row, row_, all));
  }
  const std::vector<std::span<const std::byte>> send(sent.begin(), sent.end());
  const std::vector<std::span<std::byte>> receive(received.begin(), received.end());
  place_.stage.in_column->exchange(send, receive);
  for (int64_t row = 0; row < rows; ++row)
    if (row != row_) unpack(row, row_, all, received[static_cast<size_t>(row)]);
}

// One KV head after the other goes round the ring of rows, while attention works on the head before it.
void ContextCall::attend_while_heads_travel() {
  const int64_t rows = place_.tokens.rows();
  const int64_t heads = config_.num_key_value_heads;
  const int64_t tokens = queries_.shape()[0];
  // In step `step` every row passes on the block that it got in the step before, its own first.
  const auto travel = [&](int64_t head, int64_t step, auto&& meanwhile) {
    const int64_t block = (row_ - step + rows) % rows;
    const int64_t next = (row_ - step - 1 + rows) % rows;
    const auto sent = packed(block, kAllRows, {head, 1});
    auto received = room_for(next, kAllRows, {head, 1});
    std::vector<std::span<const std::byte>> send(static_cast<size_t>(rows));
    std::vector<std::span<std::byte>> receive(static_cast<size_t>(rows));
    send[static_cast<size_t>((row_ + 1) % rows)] = sent;
    receive[static_cast<size_t>((row_ + rows - 1) % rows)] = received;
    const auto transfer = place_.stage.in_column->start_exchange(send, receive);
    meanwhile();
    transfer->wait();
    unpack(next, kAllRows, {head, 1}, received);
  };
  for (int64_t step = 0; step + 1 < rows; ++step) travel(0, step, [] {});
  for (int64_t head = 0; head < heads; ++head) {
    const KvCache context = make_context({head, 1});
    for (int64_t step = 0; step + 1 < rows; ++step) {
      const auto work = [&] { attend({head, 1}, context, part_of(tokens, rows - 1, step)); };
      if (head + 1 < heads)
        travel(head + 1, step, work);
      else
        work();
    }
  }
}

// The keys and values that this row's tokens see, of some heads: a slot a sequence, from its origin on.
// As the cache stores them: attention has to see the numbers that later tokens will see.
KvCache ContextCall::make_context(HeadRange heads) const {
  KvCacheOptions options{.slots = std::max<int64_t>(1, static_cast<int64_t>(sequences_.size())), .capacity = 1};
  for (const Sequence& sequence : sequences_)
    options.capacity = std::max(options.capacity, sequence.seen.last - sequence.origin + 1);
  options.keys = format_of(key_format_, config_.head_dim, heads);
  options.values = format_of(value_format_, config_.v_head_dim, heads);
  KvCache context = KvCache::contiguous(
      options, {.num_key_value_heads = heads.count, .head_dim = config_.head_dim, .v_head_dim = config_.v_head_dim});
  for (size_t slot = 0; slot < sequences_.size(); ++slot) {
    const Sequence& sequence = sequences_[slot];
    if (sequence.seen.empty()) continue;
    const Span& span = input_.spans[sequence.span];
    const int64_t prior = std::max<int64_t>(0, span.first_position - sequence.origin);
    if (prior > 0)
      context.restore_stored(static_cast<int64_t>(slot), 0, heads_of(sequence.prior, heads.first, heads.count));
    const int64_t first = std::max<int64_t>(0, sequence.origin - span.first_position);
    const int64_t count = sequence.seen.last - span.first_position + 1 - first;
    const Tensor keys = columns_of(keys_, {sequence.first_token + first, count}, heads.first * config_.head_dim,
                                   heads.count * config_.head_dim);
    const Tensor values = columns_of(values_, {sequence.first_token + first, count}, heads.first * config_.v_head_dim,
                                     heads.count * config_.v_head_dim);
    context.append({.slot = static_cast<int64_t>(slot), .first_position = prior, .count = count},
                   keys.view().reshape({count, heads.count, config_.head_dim}),
                   values.view().reshape({count, heads.count, config_.v_head_dim}), workspace_.threads());
  }
  return context;
}

KvFormat ContextCall::format_of(const KvFormat& all, int64_t width, HeadRange heads) const {
  KvFormat format = all;
  const int64_t of_head = scales_a_head(all, config_.num_key_value_heads, width);
  if (of_head == 0) return format;
  const auto first = all.scales.begin() + heads.first * of_head;
  format.scales.assign(first, first + heads.count * of_head);
  return format;
}

// Attention of some of this row's tokens, which see one context.
void ContextCall::attend(HeadRange heads, const KvCache& context, ElementRange tokens) {
  const int64_t group = config_.group_size();
  const bool all = heads.count == config_.num_key_value_heads && tokens.count == queries_.shape()[0];
  const Tensor queries = all ? Tensor()
                             : columns_of(queries_, tokens, heads.first * group * config_.head_dim,
                                          heads.count * group * config_.head_dim);
  const int64_t columns = heads.count * group * config_.v_head_dim;
  const Tensor out = all ? Tensor() : Tensor(DType::f32, {tokens.count, columns});
  Memory& memory = workspace_.memory();
  memory.spans.clear();
  memory.visible.assign(static_cast<size_t>(tokens.count), Interval{});
  int64_t index = 0;
  for (const SpanShare& share : place_.tokens.of_row(row_)) {
    const auto sequence = std::ranges::find(sequences_, share.span, &Sequence::span);
    const int64_t begin = std::clamp(index, tokens.first, tokens.first + tokens.count);
    const int64_t end = std::clamp(index + share.count, tokens.first, tokens.first + tokens.count);
    const bool skipped = sequence == sequences_.end();
    if (begin < end)
      memory.spans.push_back({.kv = skipped ? kernels::KvPages{} : context.view(sequence - sequences_.begin()),
                              .first_token = begin - tokens.first,
                              .count = end - begin});
    for (int64_t i = begin; i < end && !skipped; ++i) {
      const Span& span = input_.spans[share.span];
      const Interval seen =
          mask_.visible(positions_[static_cast<size_t>(i)], span.first_position + span.count, span.prefix_end());
      memory.visible[static_cast<size_t>(i - tokens.first)] = {seen.first - sequence->origin,
                                                               seen.last - sequence->origin};
    }
    index += share.count;
  }
  const kernels::AttendShape shape{.heads = heads.count * group,
                                   .kv_heads = heads.count,
                                   .head_dim = config_.head_dim,
                                   .v_head_dim = config_.v_head_dim,
                                   .scale = static_cast<float>(config_.softmax_scale),
                                   .soft_cap = static_cast<float>(config_.logit_soft_cap),
                                   .sinks = shard_.sinks.empty() ? nullptr : shard_.sinks.data() + heads.first * group};
  kernels::attend({.shape = shape,
                   .spans = memory.spans,
                   .queries = (all ? queries_ : queries).view().data(),
                   .visible = memory.visible.data(),
                   .out = (all ? attended_ : out).view().data()},
                  memory.attend, workspace_.threads(), workspace_.options());
  if (all) return;
  const int64_t width = attended_.shape()[1];
  for (int64_t i = 0; i < tokens.count; ++i)
    std::copy_n(out.view().as<float>() + i * columns, columns,
                attended_.view().as<float>() + (tokens.first + i) * width + heads.first * group * config_.v_head_dim);
}

void ContextCall::write_output() {
  HiddenOutput output(shard_, &place_, input_.output, workspace_);
  const int64_t tokens = attended_.shape()[0];
  for (int64_t first = 0; first < tokens; first += kPieceTokens)
    output.write(first, attended_.view().slice(0, first, std::min(kPieceTokens, tokens - first)));
  output.finish();
}

}  // namespace regard
