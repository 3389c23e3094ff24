#include "layers/attention_call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cache/pieces.h"
#include "kernels/rows.h"
#include "layers/ranked_call.h"
#include "layers/shared_tokens.h"
#include "layers/span_rows.h"
#include "regard/block_table.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

}  // namespace

int64_t tokens_at_once(const AttentionConfig& config, bool has_trees, int64_t tokens) {
  // Where queries see later tokens, all keys have to be there first; and trees are not cut.
  if (!config.is_causal || has_trees) return std::max<int64_t>(1, tokens);
  // Enough for the matrix kernels to run at full speed; caches with windows have no room for more.
  const int64_t asked = config.inference.windowed_context_encoding_size;
  return asked > 0 ? std::min(asked, KvCache::kTokensAtOnce) : KvCache::kTokensAtOnce;
}

Span implied_span(const Attention& attention, const AttentionInput& input) {
  const int64_t tokens = input.hidden_states.size(0);
  if (input.cache == nullptr) return {.slot = 0, .first_position = 0, .count = tokens};
  require(!attention.shares_sequences(),
          "attention: spans are missing, expected them where ranks divide sequences or their tokens: none knows all "
          "lengths");
  return {.slot = 0, .first_position = input.cache->length(0), .count = tokens};
}

AttentionCall::AttentionCall(const Attention& attention, const AttentionShard& shard, const AttentionInput& input,
                             const RankPlace* place)
    : layer_(attention),
      shard_(shard),
      config_(shard.config),
      input_(input),
      place_(place),
      own_workspace_(input.workspace == nullptr ? std::optional<Workspace>(std::in_place) : std::nullopt),
      workspace_(own_workspace_ ? *own_workspace_ : *input.workspace),
      memory_(workspace_.memory()) {
  check_input();
  tokens_ = input.hidden_states.size(0);
  resolve_spans();
  resolve_cache();
  trees_ = make_trees("attention", spans_, input_.active_masks, config_.is_causal, share_);
  resolve_angles();
  make_outputs();
  hidden_output_.emplace(shard_, place_, hidden_, workspace_);
}

AttentionOutput AttentionCall::run() {
  Piece piece{.first = 0, .count = 0};
  for (TokenCursor at; at.run < spans_.size(); piece.first += piece.count) {
    piece.count = next_piece(spans_, piece_tokens(), at);
    run_piece(piece);
  }
  hidden_output_->finish();
  if (place_ == nullptr) clear_skipped();
  return std::move(output_);
}

void check_rmsnorm(const AttentionOptions& options, const AttentionConfig& config) {
  if (options.rmsnorm.empty()) return;
  require(config.rms_norm_eps.has_value(), "attention: rmsnorm is given, but rms_norm_eps is not set");
  require(options.rmsnorm.shape() == Shape{config.input_size()}, "attention: rmsnorm has shape {}, expected [{}]",
          options.rmsnorm.shape(), config.input_size());
  (void)options.rmsnorm.elements<float>();
}

void AttentionCall::check_input() const {
  const ConstTensorView& x = input_.hidden_states;
  require(x.shape().rank() == 2 && x.size(1) == config_.input_size() && x.is_dense(),
          "attention: hidden_states has shape {}, expected [tokens, {}], dense", x.shape(), config_.input_size());
  require(is_activation(x.dtype()), "attention: hidden_states has dtype {}, expected f32, bf16 or f16",
          name_of(x.dtype()));
  check_rmsnorm(input_, config_);
  if (!input_.residual.empty())
    require(input_.residual.shape() == x.shape() && input_.residual.dtype() == x.dtype() && input_.residual.is_dense(),
            "attention: residual has shape {} and dtype {}, expected those of hidden_states: {}, {}",
            input_.residual.shape(), name_of(input_.residual.dtype()), x.shape(), name_of(x.dtype()));
  require(input_.rotary_position_ids.empty() || static_cast<int64_t>(input_.rotary_position_ids.size()) == x.size(0),
          "attention: rotary_position_ids has {} entries, expected {}, one a token", input_.rotary_position_ids.size(),
          x.size(0));
}

void AttentionCall::resolve_spans() {
  spans_ = input_.spans;
  if (spans_.empty() && tokens_ > 0) {
    own_spans_ = {implied_span(layer_, input_)};
    spans_ = own_spans_;
  }
  int64_t counted = 0;
  for (const Span& span : spans_) {
    require(span.count >= 1 && span.count <= tokens_ - counted,
            "attention: spans hold more tokens than hidden_states, which has {}", tokens_);
    require(span.first_position >= 0 && span.first_position <= std::numeric_limits<int64_t>::max() - span.count,
            "attention: first_position is {}, expected 0 or more, and room for {} positions", span.first_position,
            span.count);
    counted += span.count;
  }
  require(counted == tokens_, "attention: spans hold {} tokens, but hidden_states has {}", counted, tokens_);
  check_prefixes("attention", spans_, config_.is_causal, input_.active_masks);
}

int64_t AttentionCall::position_of(size_t span, int64_t token) const {
  const TokenTree* tree = tree_of(span);
  return memory_.origins[span] + spans_[span].first_position + (tree == nullptr ? token : tree->depth(token));
}

void AttentionCall::resolve_cache() {
  cache_ = input_.cache;
  // The position that a span's first position 0 stands for; only without a cache is it not 0.
  memory_.origins.assign(spans_.size(), 0);
  if (cache_ == nullptr) {
    // Without a cache every span is a sequence of its own, kept for the call.
    if (own_spans_.empty()) own_spans_.assign(spans_.begin(), spans_.end());
    int64_t longest = 1;
    for (size_t i = 0; i < own_spans_.size(); ++i) {
      Span& span = own_spans_[i];
      memory_.origins[i] = span.first_position;
      span.first_position = 0;
      if (span.slot != -1) span.slot = static_cast<int64_t>(i);
      longest = std::max(longest, span.count);
    }
    spans_ = own_spans_;
    own_cache_ = KvCache::contiguous(
        {.slots = std::max<int64_t>(1, static_cast<int64_t>(spans_.size())), .capacity = longest, .dtype = DType::f32},
        config_);
    cache_ = &*own_cache_;
  }
  require(cache_->num_key_value_heads() == config_.num_key_value_heads && cache_->head_dim() == config_.head_dim &&
              cache_->v_head_dim() == config_.v_head_dim,
          "attention: the cache has {} KV heads of {} and {}, but the layer has {} of {} and {}",
          cache_->num_key_value_heads(), cache_->head_dim(), cache_->v_head_dim(), config_.num_key_value_heads,
          config_.head_dim, config_.v_head_dim);
  if (input_.cache != nullptr) share_ = shard_.token_share();
  if (share_.is_all()) {
    cache_->check(spans_, piece_tokens());
    check_reach();
  } else {
    cache_->check(own_parts(share_, spans_), piece_tokens());
  }
}

// A cache that was made for a layer with another window or chunk may give back what this one's tokens see.
void AttentionCall::check_reach() const {
  if (cache_->first_seen(cache_->capacity()) == 0) return;
  const Mask mask = Mask::of(config_);
  for (const Span& span : spans_)
    for (int64_t p = span.first_position; span.slot != -1 && p < span.first_position + span.count; ++p)
      require(cache_->first_seen(p) <= mask.first_seen(p),
              "attention: the token at position {} sees position {}, but the cache was made for a layer whose tokens "
              "see {} and later there",
              p, mask.first_seen(p), cache_->first_seen(p));
}

void AttentionCall::resolve_angles() {
  if (!layer_.rotary_ || tokens_ == 0) return;
  std::vector<int64_t>& positions = memory_.positions;
  positions.assign(input_.rotary_position_ids.begin(), input_.rotary_position_ids.end());
  if (positions.empty())
    for (size_t s = 0; s < spans_.size(); ++s)
      for (int64_t i = 0; i < spans_[s].count; ++i) positions.push_back(position_of(s, i));
  const uint64_t key = layer_.rotary_->key(positions);
  const auto fits = [&](const AngleTable* table) { return table != nullptr && !table->empty() && table->key == key; };
  const auto use_all = [&](const AngleTable& cos, const AngleTable& sin) {
    angles_ = {.cos = cos.values, .sin = sin.values, .first = 0, .count = tokens_};
  };
  if (fits(input_.cos_cache) && fits(input_.sin_cache)) use_all(*input_.cos_cache, *input_.sin_cache);
  if (!input_.angles) return;
  RotaryAngles own =
      angles_.count > 0 ? RotaryAngles{*input_.cos_cache, *input_.sin_cache} : layer_.rotary_->angles(positions);
  output_.cos_cache = std::move(own.cos);
  output_.sin_cache = std::move(own.sin);
  use_all(output_.cos_cache, output_.sin_cache);
}

// Makes angles_ hold those of the piece, and of so many tokens after it that memory does not grow with the sequence.
void AttentionCall::find_angles(const Piece& piece) {
  if (!layer_.rotary_ || (piece.first >= angles_.first && piece.first + piece.count <= angles_.first + angles_.count))
    return;
  constexpr int64_t kMostTokens = 8192;
  const int64_t count = std::min(std::max(piece.count, kMostTokens), tokens_ - piece.first);
  const auto positions =
      std::span<const int64_t>(memory_.positions).subspan(static_cast<size_t>(piece.first), static_cast<size_t>(count));
  const auto [cos, sin] = angles_of(*layer_.rotary_, positions, workspace_);
  angles_ = {.cos = cos, .sin = sin, .first = piece.first, .count = count};
}

void AttentionCall::make_outputs() {
  const Shape shape{tokens_, config_.hidden_size};
  const DType dtype = input_.hidden_states.dtype();
  if (place_ != nullptr) {
    hidden_ = input_.output;
  } else if (!input_.output.empty()) {
    require(input_.output.shape() == shape && input_.output.dtype() == dtype && input_.output.is_dense(),
            "attention: output has shape {} and dtype {}, expected {} and {}, dense", input_.output.shape(),
            name_of(input_.output.dtype()), shape, name_of(dtype));
    hidden_ = input_.output;
  } else {
    output_.hidden_states = Tensor(dtype, shape);
    hidden_ = output_.hidden_states;
  }
  if (input_.present_key_value)
    output_.present_key_value = {
        .key = Tensor(DType::f32, {tokens_, config_.num_key_value_heads, config_.head_dim}),
        .value = Tensor(DType::f32, {tokens_, config_.num_key_value_heads, config_.v_head_dim})};
  if (input_.lse) output_.lse = Tensor(DType::f32, {tokens_, config_.num_attention_heads});
  if (!input_.residual.empty()) output_.residual = convert(input_.residual, dtype);
}

template <class Visit>
void AttentionCall::for_each_part(const Piece& piece, Visit visit) const {
  int64_t before = 0;
  for (size_t index = 0; index < spans_.size(); ++index) {
    const Span& span = spans_[index];
    const int64_t begin = std::max(piece.first, before);
    const int64_t end = std::min(piece.first + piece.count, before + span.count);
    if (begin < end)
      visit(index, begin - piece.first,
            Span{.slot = span.slot,
                 .first_position = span.first_position + (begin - before),
                 .count = end - begin,
                 .prefix = begin == before ? span.prefix : 0});
    before += span.count;
  }
}

void AttentionCall::run_piece(const Piece& piece) {
  const auto& c = config_;
  find_angles(piece);
  const TensorView q = memory_.matrix(Memory::Piece::queries, piece.count, c.num_attention_heads * c.head_dim);
  const TensorView k = memory_.matrix(Memory::Piece::keys, piece.count, c.num_key_value_heads * c.head_dim);
  const TensorView v = memory_.matrix(Memory::Piece::values, piece.count, c.num_key_value_heads * c.v_head_dim);
  const TensorView attended =
      memory_.matrix(Memory::Piece::attended, piece.count, c.num_attention_heads * c.v_head_dim);
  shard_.qkv.forward(normed_input(piece), q, k, v, workspace_);
  prepare(piece, {.q = q, .k = k, .v = v});
  append(piece, k, v);
  attend(piece, q, attended);
  // The owner looks at what the last piece leaves; earlier ones have to make room for it.
  const bool leave_trim = cache_->block_tables().owner_trims() && piece.first + piece.count == tokens_;
  for_each_part(piece, [&](size_t, int64_t, const Span& part) {
    if (part.slot != -1 && !leave_trim) cache_->trim(part.slot);
  });
  hidden_output_->write(piece.first, attended);
}

// The piece's rows as the projection reads them: with rmsnorm, residual added and normed in f32 [CFG-30], [OUT-6].
ConstTensorView AttentionCall::normed_input(const Piece& piece) {
  const ConstTensorView x = input_.hidden_states.slice(0, piece.first, piece.count);
  if (input_.rmsnorm.empty()) return x;
  const int64_t width = x.size(1);
  const int64_t row_bytes = width * static_cast<int64_t>(size_of(x.dtype()));
  const TensorView normed = memory_.matrix(Memory::Piece::normed, piece.count, width);
  const float* gain = input_.rmsnorm.as<float>();
  for (int64_t token = 0; token < piece.count; ++token) {
    float* row = normed.as<float>() + token * width;
    kernels::load_floats(x.data() + token * row_bytes, x.dtype(), width, row);
    if (!input_.residual.empty()) {
      std::byte* sum = output_.residual.view().data() + (piece.first + token) * row_bytes;
      std::vector<float>& other = memory_.row;
      other.resize(static_cast<size_t>(width));
      kernels::load_floats(sum, x.dtype(), width, other.data());
      for (int64_t i = 0; i < width; ++i) row[i] += other[static_cast<size_t>(i)];
      kernels::store_floats(row, width, x.dtype(), sum);
      kernels::load_floats(sum, x.dtype(), width, row);
    }
    kernels::rms_norm(row, gain, *config_.rms_norm_eps, width, row);
  }
  return normed;
}

void AttentionCall::prepare(const Piece& piece, const HeadRows& rows) {
  std::vector<int64_t>& positions = memory_.piece_positions;
  positions.clear();
  for_each_part(piece, [&](size_t index, int64_t, const Span& part) {
    const int64_t first = part.first_position - spans_[index].first_position;
    for (int64_t i = 0; i < part.count; ++i) positions.push_back(position_of(index, first + i));
  });
  HeadPlaces places{.positions = positions, .cos = {}, .sin = {}};
  if (layer_.rotary_) {
    places.cos = angles_.cos.slice(0, piece.first - angles_.first, piece.count);
    places.sin = angles_.sin.slice(0, piece.first - angles_.first, piece.count);
  }
  prepare_heads(shard_, places, rows, workspace_.threads());
}

void AttentionCall::append(const Piece& piece, TensorView k, TensorView v) {
  const auto& c = config_;
  for_each_part(piece, [&](size_t index, int64_t first, const Span& part) {
    const auto rows = [&](TensorView matrix, int64_t width) {
      return matrix.slice(0, first, part.count).reshape({part.count, c.num_key_value_heads, width});
    };
    const TensorView keys = rows(k, c.head_dim);
    const TensorView values = rows(v, c.v_head_dim);
    if (share_.is_all())
      cache_->append(part, keys, values, workspace_.threads());
    else if (part.slot != -1)
      append_own(index, part, keys, values);
  });
  if (!input_.present_key_value) return;
  const auto copy = [&](TensorView from, const Tensor& to) {
    std::memcpy(to.view().slice(0, piece.first, piece.count).data(), from.data(),
                static_cast<size_t>(from.shape().elements()) * sizeof(float));
  };
  copy(k, output_.present_key_value.key);
  copy(v, output_.present_key_value.value);
}

// Of a part's tokens those that this rank keeps. Where they branch, it may have to see others: all wait aside until the
// end of the call.
void AttentionCall::append_own(size_t index, const Span& part, TensorView keys, TensorView values) {
  if (tree_of(index) != nullptr) {
    active_.resize(spans_.size());
    KvCache& active = active_[index].emplace(KvCache::contiguous(
        {.slots = 1, .capacity = part.count, .keys = cache_->key_format(), .values = cache_->value_format()}, config_));
    active.append({.slot = 0, .first_position = 0, .count = part.count}, keys, values, workspace_.threads());
  }
  const int64_t place = share_.count_below(part.first_position);
  if (cache_->length(part.slot) > place) cache_->truncate(part.slot, place);
  for (int64_t i = 0; i < part.count;) {
    const int64_t position = part.first_position + i;
    const int64_t count = std::min(part.count - i, TokenShare::kRun - position % TokenShare::kRun);
    if (share_.owns(position))
      cache_->append({.slot = part.slot, .first_position = share_.count_below(position), .count = count},
                     keys.slice(0, i, count), values.slice(0, i, count), workspace_.threads());
    i += count;
  }
}

void AttentionCall::attend(const Piece& piece, ConstTensorView q, TensorView attended) {
  const Mask mask = Mask::of(config_);
  const kernels::AttendShape shape{.heads = config_.num_attention_heads,
                                   .kv_heads = config_.num_key_value_heads,
                                   .head_dim = config_.head_dim,
                                   .v_head_dim = config_.v_head_dim,
                                   .scale = static_cast<float>(config_.softmax_scale),
                                   .soft_cap = static_cast<float>(config_.logit_soft_cap),
                                   .sinks = shard_.sinks.empty() ? nullptr : shard_.sinks.data()};
  copy_tails(trees_, spans_, *cache_, active_, shape, workspace_);
  SpanRows rows(memory_, piece.count);
  for_each_part(piece, [&](size_t index, int64_t first, const Span& part) {
    const Span& span = spans_[index];
    if (span.slot == -1)
      rows.skip(first, part.count);
    else
      rows.add(first, part, tree_of(index), cache_->view(span.slot), mask, span.first_position + span.count,
               memory_.origins[index]);
  });
  const kernels::AttendCall call{
      .shape = shape,
      .spans = memory_.spans,
      .queries = q.data(),
      .visible = memory_.visible.data(),
      .out = attended.data(),
      .lse = input_.lse ? output_.lse.view().as<float>() + piece.first * config_.num_attention_heads : nullptr};
  if (share_.is_all())
    kernels::attend(call, memory_.attend, workspace_.threads(), workspace_.options());
  else
    SharedTokens(shard_, layer_.ranks().config().deterministic, workspace_).attend(call);
}

// Tokens that belong to no sequence give zeros.
void AttentionCall::clear_skipped() {
  for_each_part({.first = 0, .count = tokens_}, [&](size_t, int64_t first, const Span& part) {
    if (part.slot != -1) return;
    const TensorView skipped = hidden_.slice(0, first, part.count);
    std::memset(skipped.data(), 0, static_cast<size_t>(skipped.shape().elements()) * size_of(skipped.dtype()));
  });
}

AttentionOutput Attention::forward(const AttentionInput& input) const {
  if (ranks_.size() == 1) return AttentionCall(*this, *decode_, input).run();
  return RankedCall(*this, input).run();
}

}  // namespace regard
