#include "layers/attention_call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/rows.h"
#include "layers/input_rows.h"
#include "layers/ranked_call.h"
#include "layers/shared_tokens.h"
#include "layers/span_rows.h"
#include "regard/block_table.h"
#include "tensor/fail.h"
#include "tensor/float_environment.h"

namespace regard {
namespace {

using Memory = Workspace::Memory;

}  // namespace

Span implied_span(const Attention& attention, const AttentionInput& input) {
  const int64_t tokens = input.hidden_states.size(0);
  if (input.cache == nullptr) return {.slot = 0, .first_position = 0, .count = tokens};
  require(!attention.shares_sequences(),
          "attention: spans are missing, expected them where ranks divide sequences or their tokens: none knows all "
          "lengths");
  return {.slot = 0, .first_position = input.cache->length(0), .count = tokens};
}

AttentionCall::AttentionCall(const Attention& attention, const AttentionShard& shard, const AttentionInput& input,
                             const RankPlace* place, StepPlan* plan, ContextExchange* exchange)
    : layer_(attention),
      shard_(shard),
      config_(shard.config),
      input_(input),
      place_(place),
      own_workspace_(input.workspace == nullptr ? std::optional<Workspace>(std::in_place) : std::nullopt),
      workspace_(own_workspace_ ? *own_workspace_ : *input.workspace),
      memory_(workspace_.memory()),
      plan_(plan),
      exchange_(exchange),
      hidden_states_(input.hidden_states),
      cache_(exchange == nullptr ? input.cache : &exchange->context()) {
  check_input();
  if (plan_ == nullptr) make_plan();
  resolve_angles();
  make_outputs();
  hidden_output_.emplace(shard_, place_, hidden_, workspace_);
}

AttentionOutput AttentionCall::run() {
  Piece piece{.first = 0, .count = 0};
  for (TokenCursor at; piece.first < plan_->tokens(); piece.first += piece.count) {
    piece.count = piece_tokens(at, piece.first);
    run_piece(piece);
  }
  if (exchange_ != nullptr) exchange_->finish([&](ElementRange tokens) { return project_keys_values(tokens); });
  hidden_output_->finish();
  if (place_ == nullptr) clear_skipped();
  return std::move(output_);
}

// In a context all keys are there, wherever pieces end.
int64_t AttentionCall::piece_tokens(TokenCursor& at, int64_t first) const {
  if (exchange_ != nullptr) return std::min(KvCache::kTokensAtOnce, plan_->tokens() - first);
  return next_piece(plan_->spans(), plan_->at_once(config_), at);
}

void AttentionCall::make_plan() {
  const bool all = place_ == nullptr || place_->scattered;
  Step step{.tokens = all ? input_.hidden_states.size(0) : place_->tokens.count_of(place_->stage.row),
            .spans = input_.spans,
            .has_cache = input_.cache != nullptr,
            .active_masks = input_.active_masks,
            .rotary_position_ids = input_.rotary_position_ids};
  if (step.spans.empty() && step.tokens > 0) step.spans = {&own_span_.emplace(implied_span(layer_, input_)), 1};
  if (step.has_cache) step.share = shard_.token_share();
  plan_ = &own_plan_.emplace(step, workspace_);
  if (!step.has_cache) {
    // Every span is a sequence of its own, kept for the call.
    const int64_t sequences = std::max<int64_t>(1, std::ssize(plan_->spans()));
    own_cache_ = KvCache::contiguous({.slots = sequences, .capacity = plan_->longest()}, config_);
    cache_ = &*own_cache_;
  }
  plan_->check(config_, *cache_);
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
}

// Angles that the caller passed are used where they fit; those that it wants back are made for all tokens.
void AttentionCall::resolve_angles() {
  const bool passed = input_.cos_cache != nullptr && input_.sin_cache != nullptr;
  if (!layer_.rotary_ || plan_->tokens() == 0 || (!passed && !input_.angles)) return;
  const auto positions = plan_->rotary_positions();
  const uint64_t key = layer_.rotary_->key(positions);
  const auto fits = [&](const AngleTable* table) { return !table->empty() && table->key == key; };
  if (passed && fits(input_.cos_cache) && fits(input_.sin_cache)) angles_ = {*input_.cos_cache, *input_.sin_cache};
  if (!input_.angles) return;
  if (angles_.cos.empty()) angles_ = layer_.rotary_->angles(positions);
  output_.cos_cache = angles_.cos;
  output_.sin_cache = angles_.sin;
}

RowAngles AttentionCall::angles_of(const Piece& piece) {
  if (angles_.cos.empty()) return plan_->angles(*layer_.rotary_, piece.first, piece.count);
  return {.cos = angles_.cos.values.view().slice(0, piece.first, piece.count),
          .sin = angles_.sin.values.view().slice(0, piece.first, piece.count)};
}

void AttentionCall::make_outputs() {
  const int64_t tokens = plan_->tokens();
  const Shape shape{tokens, config_.hidden_size};
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
        .key = Tensor(DType::f32, {tokens, config_.num_key_value_heads, config_.head_dim}),
        .value = Tensor(DType::f32, {tokens, config_.num_key_value_heads, config_.v_head_dim})};
  if (input_.lse) output_.lse = Tensor(DType::f32, {tokens, config_.num_attention_heads});
  if (input_.residual.empty()) return;
  output_.residual = residual_of(input_.hidden_states, input_, workspace_.threads());
  if (!input_.rmsnorm.empty()) hidden_states_ = output_.residual;
}

template <class Visit>
void AttentionCall::for_each_part(const Piece& piece, Visit visit) const {
  int64_t before = 0;
  const auto spans = plan_->spans();
  for (size_t index = 0; index < spans.size(); ++index) {
    const Span& span = spans[index];
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
  const TensorView q = memory_.matrix(Memory::Piece::queries, piece.count, c.num_attention_heads * c.head_dim);
  const TensorView attended =
      memory_.matrix(Memory::Piece::attended, piece.count, c.num_attention_heads * c.v_head_dim);
  if (exchange_ != nullptr) {
    exchange_->bring(piece, [&](ElementRange tokens) { return project_keys_values(tokens); });
    project(piece, {.q = q, .k = {}, .v = {}});
  } else {
    const TensorView k = memory_.matrix(Memory::Piece::keys, piece.count, c.num_key_value_heads * c.head_dim);
    const TensorView v = memory_.matrix(Memory::Piece::values, piece.count, c.num_key_value_heads * c.v_head_dim);
    project(piece, {.q = q, .k = k, .v = v});
    append(piece, k, v);
  }
  attend(piece, q, attended);
  if (exchange_ == nullptr) trim(piece);
  hidden_output_->write(piece.first, attended);
}

// The owner looks at what the last piece leaves; earlier ones have to make room for it.
void AttentionCall::trim(const Piece& piece) {
  if (cache_->block_tables().owner_trims() && piece.end() == plan_->tokens()) return;
  for_each_part(piece, [&](size_t, int64_t, const Span& part) {
    if (part.slot != -1) cache_->trim(part.slot);
  });
}

// Of a call that all ranks see, this row's tokens.
ConstTensorView AttentionCall::input_rows(const Piece& piece) {
  const int64_t tokens = hidden_states_.size(0);
  if (place_ == nullptr || place_->scattered || place_->tokens.count_of(place_->stage.row) == tokens)
    return hidden_states_.slice(0, piece.first, piece.count);
  const int64_t width = hidden_states_.size(1);
  const auto bytes = static_cast<size_t>(width) * size_of(hidden_states_.dtype());
  if (own_rows_.empty() || own_rows_.shape()[0] < piece.count)
    own_rows_ = Tensor(hidden_states_.dtype(), {piece.count, width});
  const auto of_row = std::span(place_->tokens.tokens_of(place_->stage.row))
                          .subspan(static_cast<size_t>(piece.first), static_cast<size_t>(piece.count));
  for (size_t i = 0; i < of_row.size(); ++i)
    std::memcpy(own_rows_.view().data() + i * bytes, hidden_states_.data() + static_cast<size_t>(of_row[i]) * bytes,
                bytes);
  return own_rows_.view().slice(0, 0, piece.count);
}

void AttentionCall::project(const Piece& piece, const HeadRows& rows) {
  shard_.qkv.forward(normed_rows(input_rows(piece), input_.rmsnorm, config_, workspace_), rows.q, rows.k, rows.v,
                     workspace_);
  prepare(piece, rows);
}

ContextExchange::KeysValues AttentionCall::project_keys_values(const Piece& piece) {
  const auto& c = config_;
  const TensorView k = memory_.matrix(Memory::Piece::keys, piece.count, c.num_key_value_heads * c.head_dim);
  const TensorView v = memory_.matrix(Memory::Piece::values, piece.count, c.num_key_value_heads * c.v_head_dim);
  project(piece, {.q = {}, .k = k, .v = v});
  return {.keys = k.reshape({piece.count, c.num_key_value_heads, c.head_dim}),
          .values = v.reshape({piece.count, c.num_key_value_heads, c.v_head_dim})};
}

void AttentionCall::prepare(const Piece& piece, const HeadRows& rows) {
  HeadPlaces places{
      .positions = plan_->positions().subspan(static_cast<size_t>(piece.first), static_cast<size_t>(piece.count)),
      .cos = {},
      .sin = {}};
  if (layer_.rotary_) {
    const RowAngles angles = angles_of(piece);
    places.cos = angles.cos;
    places.sin = angles.sin;
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
    if (plan_->share().is_all())
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
  const TokenShare& share = plan_->share();
  if (plan_->has_tree(index)) {
    active_.resize(plan_->spans().size());
    KvCache& active = active_[index].emplace(KvCache::contiguous(
        {.slots = 1, .capacity = part.count, .keys = cache_->key_format(), .values = cache_->value_format()}, config_));
    active.append({.slot = 0, .first_position = 0, .count = part.count}, keys, values, workspace_.threads());
  }
  const int64_t place = share.count_below(part.first_position);
  if (cache_->length(part.slot) > place) cache_->truncate(part.slot, place);
  for (int64_t i = 0; i < part.count;) {
    const int64_t position = part.first_position + i;
    const int64_t count = std::min(part.count - i, TokenShare::kRun - position % TokenShare::kRun);
    if (share.owns(position))
      cache_->append({.slot = part.slot, .first_position = share.count_below(position), .count = count},
                     keys.slice(0, i, count), values.slice(0, i, count), workspace_.threads());
    i += count;
  }
}

void AttentionCall::attend(const Piece& piece, ConstTensorView q, TensorView attended) {
  const kernels::AttendShape shape{.heads = config_.num_attention_heads,
                                   .kv_heads = config_.num_key_value_heads,
                                   .head_dim = config_.head_dim,
                                   .v_head_dim = config_.v_head_dim,
                                   .scale = static_cast<float>(config_.softmax_scale),
                                   .soft_cap = static_cast<float>(config_.logit_soft_cap),
                                   .sinks = shard_.sinks.empty() ? nullptr : shard_.sinks.data()};
  copy_tails(plan_->trees(), plan_->spans(), *cache_, active_, shape, workspace_);
  memory_.spans.clear();
  for_each_part(piece, [&](size_t index, int64_t first, const Span& part) {
    const TokenTree* tree = plan_->has_tree(index) ? &*plan_->trees()[index] : nullptr;
    memory_.spans.push_back(attend_span(*cache_, part, first, tree));
  });
  const kernels::AttendCall call{
      .shape = shape,
      .spans = memory_.spans,
      .queries = q.data(),
      .visible = plan_->visible(Mask::of(config_)) + piece.first,
      .out = attended.data(),
      .lse = input_.lse ? output_.lse.view().as<float>() + piece.first * config_.num_attention_heads : nullptr};
  if (plan_->share().is_all())
    kernels::attend(call, memory_.attend, workspace_.threads(), workspace_.options());
  else
    SharedTokens(shard_, layer_.ranks().config().deterministic, workspace_).attend(call);
}

// Tokens that belong to no sequence give zeros.
void AttentionCall::clear_skipped() {
  for_each_part({.first = 0, .count = plan_->tokens()}, [&](size_t, int64_t first, const Span& part) {
    if (part.slot != -1) return;
    const TensorView skipped = hidden_.slice(0, first, part.count);
    std::memset(skipped.data(), 0, static_cast<size_t>(skipped.shape().elements()) * size_of(skipped.dtype()));
  });
}

void Attention::run(const AttentionInput& input, StepPlan* plan) const {
  if (plan == nullptr)
    (void)RankedCall(*this, input).run_agreed();
  else
    (void)AttentionCall(*this, *decode_, input, nullptr, plan).run();
}

AttentionOutput Attention::forward(const AttentionInput& input) const {
  const FloatEnvironment environment;
  if (ranks_.size() == 1) return AttentionCall(*this, *decode_, input).run();
  return RankedCall(*this, input).run();
}

}  // namespace regard
