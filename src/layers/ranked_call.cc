#include "layers/ranked_call.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/rows.h"
#include "layers/attention_call.h"
#include "layers/context_call.h"
#include "layers/span_rows.h"
#include "parallel/rank_order.h"
#include "tensor/fail.h"

namespace regard {
namespace {

std::byte* row_at(TensorView rows, int64_t index) { return rows.slice(0, index, 1).data(); }

int64_t row_bytes(ConstTensorView rows) { return rows.size(1) * static_cast<int64_t>(size_of(rows.dtype())); }

// Sequences that a row of ranks has in decode.
int64_t slots_a_row(std::span<const Span> spans, const KvCache* cache, int64_t rows) {
  if (cache != nullptr) return cache->slots();
  int64_t slots = 1;
  for (const Span& span : spans) slots = std::max(slots, span.slot + 1);
  return (slots + rows - 1) / rows;
}

}  // namespace

std::vector<RankedCall::Part> RankedCall::parts_of(const Attention& attention, std::span<const Span> spans,
                                                   std::span<const ConstTensorView> active_masks, int64_t slots_a_row) {
  const Ranks& ranks = attention.ranks();
  const ParallelConfig& parallel = ranks.config();
  const bool alike = !attention.spreads_stages_differently();
  std::vector<size_t> chosen[2];
  for (size_t i = 0; i < spans.size(); ++i) {
    const bool tree = !active_masks.empty() && !active_masks[i].empty();
    const bool prefill = !alike && !tree && spans[i].count >= parallel.prefill_tokens;
    chosen[prefill ? 0 : 1].push_back(i);
  }
  std::vector<Part> parts;
  int64_t passed = 0;
  const auto add = [&](bool prefill, const AttentionShard& shard, const Ranks::Stage& stage, StageTokens tokens,
                       std::vector<size_t> of) {
    const int64_t own = part_of(tokens.count_of(stage.row), stage.in_row->size(), stage.column).count;
    parts.push_back({.prefill = prefill,
                     .shard = shard,
                     .stage = stage,
                     .spans = std::move(of),
                     .tokens = std::move(tokens),
                     .first_passed = passed,
                     .passed = own});
    passed += own;
  };
  if (!chosen[0].empty())
    add(true, *attention.prefill_, ranks.prefill(),
        StageTokens::of_prefill(spans, chosen[0], ranks.prefill().degree, parallel.context_split), chosen[0]);
  if (!chosen[1].empty())
    add(false, *attention.decode_, ranks.decode(),
        StageTokens::of_decode(spans, chosen[1], ranks.decode().degree, slots_a_row), chosen[1]);
  return parts;
}

std::vector<int64_t> RankedCall::tokens_of_rank(const Ranks& ranks, std::span<const Part> parts, int64_t rank) {
  std::vector<int64_t> own;
  for (const Part& part : parts) {
    const RankMesh mesh(ranks.size(), part.stage.degree, ranks.config().switch_cc);
    const auto& of_row = part.tokens.tokens_of(mesh.row_of(rank));
    const ElementRange range = part_of(static_cast<int64_t>(of_row.size()), mesh.columns(), mesh.column_of(rank));
    own.insert(own.end(), of_row.begin() + range.first, of_row.begin() + range.end());
  }
  return own;
}

std::vector<int64_t> Attention::tokens_of_rank(int64_t rank, std::span<const Span> spans, const KvCache* cache,
                                               std::span<const ConstTensorView> active_masks) const {
  const int64_t slots = slots_a_row(spans, cache, ranks_.decode().degree);
  return RankedCall::tokens_of_rank(ranks_, RankedCall::parts_of(*this, spans, active_masks, slots), rank);
}

RankedCall::RankedCall(const Attention& attention, const AttentionInput& input)
    : attention_(attention),
      input_(input),
      parallel_(attention.ranks().config()),
      own_workspace_(input.workspace == nullptr ? std::optional<Workspace>(std::in_place) : std::nullopt),
      spans_(input.spans),
      hidden_states_(input.hidden_states) {
  if (spans_.empty() && !parallel_.sequence_parallel_enabled && input.hidden_states.size(0) > 0) {
    own_spans_ = {implied_span(attention, input)};
    spans_ = own_spans_;
  }
  slots_a_row_ = slots_a_row(spans_, input.cache, attention.ranks().decode().degree);
  check_spans();
  parts_ = parts_of(attention, spans_, input.active_masks, slots_a_row_);
  check_rows();
}

void RankedCall::check_spans() {
  require(input_.active_masks.empty() || input_.active_masks.size() == spans_.size(),
          "attention: {} active masks are given for {} spans, expected one each, or none", input_.active_masks.size(),
          spans_.size());
  constexpr int64_t kMost = int64_t{1} << 31;
  for (const Span& span : spans_) {
    require(span.count >= 1 && span.first_position >= 0 && span.count <= kMost - tokens_ &&
                span.first_position <= kMost - span.count,
            "attention: a span has {} tokens from position {} on, expected 1 or more from 0 or later on", span.count,
            span.first_position);
    tokens_ += span.count;
  }
  check_prefixes("attention", spans_, attention_.config().is_causal, input_.active_masks);
  (void)make_trees("attention", spans_, input_.active_masks, attention_.config().is_causal);
}

void RankedCall::check_rows() {
  const AttentionConfig& config = attention_.config();
  const ConstTensorView& x = input_.hidden_states;
  check_rmsnorm(input_, config);
  int64_t expected = tokens_;
  if (parallel_.sequence_parallel_enabled)
    expected = std::accumulate(parts_.begin(), parts_.end(), int64_t{0},
                               [](int64_t sum, const Part& part) { return sum + part.passed; });
  require(x.shape().rank() == 2 && x.size(0) == expected && x.size(1) == config.input_size() && x.is_dense(),
          "attention: hidden_states of rank {} has shape {}, expected [{}, {}], dense", attention_.ranks().rank(),
          x.shape(), expected, config.input_size());
  require(is_activation(x.dtype()), "attention: hidden_states has dtype {}, expected f32, bf16 or f16",
          name_of(x.dtype()));
  require(input_.residual.empty() || (input_.residual.shape() == x.shape() && input_.residual.dtype() == x.dtype()),
          "attention: residual has shape {} and dtype {}, expected those of hidden_states: {}, {}",
          input_.residual.shape(), name_of(input_.residual.dtype()), x.shape(), name_of(x.dtype()));
  require(input_.rotary_position_ids.empty() || static_cast<int64_t>(input_.rotary_position_ids.size()) == tokens_,
          "attention: rotary_position_ids has {} entries, expected {}, one a token", input_.rotary_position_ids.size(),
          tokens_);
  require(!input_.lse, "attention: lse is asked for, which a layer over ranks does not return");
  const Shape shape{expected, config.hidden_size};
  require(input_.output.empty() ||
              (input_.output.shape() == shape && input_.output.dtype() == x.dtype() && input_.output.is_dense()),
          "attention: output has shape {} and dtype {}, expected {} and {}", input_.output.shape(),
          name_of(input_.output.dtype()), shape, name_of(x.dtype()));
  if (input_.output.empty()) output_.hidden_states = Tensor(x.dtype(), shape);
  hidden_ = input_.output.empty() ? output_.hidden_states.view() : input_.output;
}

// Rows of decode have sequences of their own, so that one may refuse what others accept: all hear of it before anybody
// waits for somebody.
void RankedCall::agree() const {
  if (input_.cache == nullptr) return;
  const Ranks& ranks = attention_.ranks();
  std::string refusal;
  try {
    check_cache();
  } catch (const Error& error) {
    refusal = error.what();
  }
  const bool alone = attention_.shares_sequences();  // others may see nothing wrong
  const auto refusals = alone ? ranks.world().gather(static_cast<char>(!refusal.empty())) : std::vector<char>();
  const auto first = std::ranges::find(refusals, char{1});
  if (!refusal.empty()) fail("{}", refusal);
  require(first == refusals.end(), "attention: rank {} refuses the call: its cache can't take its sequences' tokens",
          first - refusals.begin());
}

// That this rank's cache can take all of the call.
void RankedCall::check_cache() const {
  const Ranks::Stage& stage = attention_.ranks().decode();
  const TokenShare share = attention_.decode_->token_share();
  const AttentionConfig& config = attention_.config();
  std::vector<Span> own;
  for (Span span : spans_) {
    require(span.slot >= -1 && span.slot < slots_a_row_ * stage.degree, "attention: slot is {}, expected -1 to {}",
            span.slot, slots_a_row_ * stage.degree - 1);
    if (span.slot == -1 || span.slot / slots_a_row_ != stage.row) continue;
    span.slot %= slots_a_row_;
    require(share.count_below(span.first_position) <= input_.cache->length(span.slot),
            "attention: a span begins at position {}, but its slot holds less", span.first_position);
    own.push_back(span);
  }
  input_.cache->check(own_parts(share, own), tokens_at_once(config, !input_.active_masks.empty(), tokens_));
}

AttentionOutput RankedCall::run() {
  agree();
  add_residual();
  for (const Part& part : parts_) run_part(part);
  clear_skipped();
  return std::move(output_);
}

// Before rows travel, so that only their sum has to [OUT-6].
void RankedCall::add_residual() {
  if (input_.residual.empty()) return;
  output_.residual = convert(input_.residual, input_.residual.dtype());
  if (input_.rmsnorm.empty()) return;
  const ConstTensorView x = input_.hidden_states;
  std::vector<float> row(static_cast<size_t>(x.size(1)));
  std::vector<float> other(row.size());
  for (int64_t i = 0; i < x.size(0); ++i) {
    std::byte* sum = row_at(output_.residual, i);
    kernels::load_floats(x.data() + i * row_bytes(x), x.dtype(), x.size(1), row.data());
    kernels::load_floats(sum, x.dtype(), x.size(1), other.data());
    for (size_t k = 0; k < row.size(); ++k) row[k] += other[k];
    kernels::store_floats(row.data(), x.size(1), x.dtype(), sum);
  }
  hidden_states_ = output_.residual.view();
}

// The hidden states of this row's tokens, in order.
ConstTensorView RankedCall::row_input(const Part& part) {
  const auto& tokens = part.tokens.tokens_of(part.stage.row);
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t bytes = row_bytes(hidden_states_);
  if (!parallel_.sequence_parallel_enabled && count == tokens_) return hidden_states_;
  row_input_ = Tensor(hidden_states_.dtype(), {count, hidden_states_.size(1)});
  if (!parallel_.sequence_parallel_enabled) {
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(row_at(row_input_, i), hidden_states_.data() + tokens[static_cast<size_t>(i)] * bytes,
                  static_cast<size_t>(bytes));
    return row_input_;
  }
  std::vector<std::span<std::byte>> parts;
  for (const ElementRange& of_rank : even_parts(count, part.stage.in_row->size()))
    parts.emplace_back(row_input_.view().data() + of_rank.first * bytes, static_cast<size_t>(of_rank.count * bytes));
  part.stage.in_row->all_gather(
      {hidden_states_.data() + part.first_passed * bytes, static_cast<size_t>(part.passed * bytes)}, parts);
  return row_input_;
}

void RankedCall::run_part(const Part& part) {
  const bool scattered = parallel_.sequence_parallel_enabled;
  // Rows of a prompt sum first [PAR-32]: before that they would have more to send.
  const RankPlace place{.ranks = attention_.ranks(),
                        .stage = part.stage,
                        .tokens = part.tokens,
                        .scattered = scattered,
                        .dispatch = part.prefill ? OutputDispatch::AR_AG : parallel_.output_dispatch};
  const TensorView target = scattered ? hidden_.slice(0, part.first_passed, part.passed) : hidden_;
  AttentionInput inner;
  inner.cache = input_.cache;
  inner.rmsnorm = input_.rmsnorm;
  inner.present_key_value = false;
  inner.angles = false;
  inner.workspace = own_workspace_ ? &*own_workspace_ : input_.workspace;
  inner.hidden_states = row_input(part);
  inner.output = target;
  std::vector<int64_t> rotary;
  if (!input_.rotary_position_ids.empty())
    for (const int64_t token : part.tokens.tokens_of(part.stage.row))
      rotary.push_back(input_.rotary_position_ids[static_cast<size_t>(token)]);
  inner.rotary_position_ids = rotary;
  if (part.prefill) {
    inner.spans = spans_;
    ContextCall(attention_, inner, part.spans, place, slots_a_row_).run();
  } else {
    run_decode(part, place, inner);
  }
}

void RankedCall::run_decode(const Part& part, const RankPlace& place, AttentionInput inner) {
  std::vector<Span> spans;
  std::vector<ConstTensorView> masks;
  for (const SpanShare& share : part.tokens.of_row(part.stage.row)) {
    Span span = spans_[share.span];
    if (span.slot != -1 && part.stage.degree > 1) span.slot -= part.stage.row * slots_a_row_;
    spans.push_back(span);
    if (!input_.active_masks.empty()) masks.push_back(input_.active_masks[share.span]);
  }
  inner.spans = spans;
  inner.active_masks = masks;
  (void)AttentionCall(attention_, part.shard, inner, &place).run();
}

// Tokens that belong to no sequence give zeros.
void RankedCall::clear_skipped() {
  if (std::ranges::none_of(spans_, [](const Span& span) { return span.slot == -1; })) return;
  std::vector<int64_t> rows(static_cast<size_t>(tokens_), -1);  // by token: its row here
  if (parallel_.sequence_parallel_enabled) {
    int64_t row = 0;
    for (const int64_t token : tokens_of_rank(attention_.ranks(), parts_, attention_.ranks().rank()))
      rows[static_cast<size_t>(token)] = row++;
  } else {
    for (int64_t token = 0; token < tokens_; ++token) rows[static_cast<size_t>(token)] = token;
  }
  int64_t token = 0;
  for (const Span& span : spans_)
    for (int64_t i = 0; i < span.count; ++i, ++token)
      if (const int64_t row = rows[static_cast<size_t>(token)]; span.slot == -1 && row != -1)
        std::memset(row_at(hidden_, row), 0, static_cast<size_t>(row_bytes(hidden_)));
}

}  // namespace regard
