#include "layers/ranked_call.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "layers/attention_call.h"
#include "layers/context_exchange.h"
#include "layers/input_rows.h"
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
      workspace_(own_workspace_ ? *own_workspace_ : *input.workspace),
      spans_(input.spans),
      hidden_states_(input.hidden_states) {
  if (spans_.empty() && !parallel_.sequence_parallel_enabled && input.hidden_states.size(0) > 0) {
    own_spans_ = {implied_span(attention, input)};
    spans_ = own_spans_;
  }
  slots_a_row_ = slots_a_row(spans_, input.cache, attention.ranks().decode().degree);
  tokens_ = check_spans(attention, spans_, input.active_masks);
  parts_ = parts_of(attention, spans_, input.active_masks, slots_a_row_);
  check_rows();
}

int64_t RankedCall::check_spans(const Attention& attention, std::span<const Span> spans,
                                std::span<const ConstTensorView> active_masks) {
  require(active_masks.empty() || active_masks.size() == spans.size(),
          "attention: {} active masks are given for {} spans, expected one each, or none", active_masks.size(),
          spans.size());
  constexpr int64_t kMost = int64_t{1} << 31;
  int64_t tokens = 0;
  for (const Span& span : spans) {
    require(span.count >= 1 && span.first_position >= 0 && span.count <= kMost - tokens &&
                span.first_position <= kMost - span.count,
            "attention: a span has {} tokens from position {} on, expected 1 or more from 0 or later on", span.count,
            span.first_position);
    tokens += span.count;
  }
  check_prefixes("attention", spans, attention.config().is_causal, active_masks);
  (void)make_trees("attention", spans, active_masks, attention.config().is_causal);
  return tokens;
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
  for (const auto& [name, asked] :
       {std::pair{"lse", input_.lse}, {"present_key_value", input_.present_key_value}, {"angles", input_.angles}})
    require(!asked, "attention: {} is asked for, which a layer over ranks does not return", name);
  const Shape shape{expected, config.hidden_size};
  require(input_.output.empty() ||
              (input_.output.shape() == shape && input_.output.dtype() == x.dtype() && input_.output.is_dense()),
          "attention: output has shape {} and dtype {}, expected {} and {}", input_.output.shape(),
          name_of(input_.output.dtype()), shape, name_of(x.dtype()));
  if (input_.output.empty()) output_.hidden_states = Tensor(x.dtype(), shape);
  hidden_ = input_.output.empty() ? output_.hidden_states.view() : input_.output;
}

void RankedCall::agree(std::span<const Layer> layers, std::span<const Span> spans,
                       std::span<const ConstTensorView> active_masks) {
  std::string refusal;
  bool alone = false;  // others may see nothing wrong
  for (const Layer& layer : layers) {
    (void)check_spans(layer.attention, spans, active_masks);
    if (layer.cache == nullptr) continue;
    alone |= layer.attention.shares_sequences();
    try {
      if (refusal.empty()) check_cache(layer, spans, active_masks);
    } catch (const Error& error) {
      refusal = error.what();
    }
  }
  const Ranks& ranks = layers.front().attention.ranks();
  const auto refusals = alone ? ranks.world().gather(static_cast<char>(!refusal.empty())) : std::vector<char>();
  const auto first = std::ranges::find(refusals, char{1});
  if (!refusal.empty()) fail("{}", refusal);
  require(first == refusals.end(), "attention: rank {} refuses the call: its cache can't take its sequences' tokens",
          first - refusals.begin());
}

// That this rank's cache can take all of the call.
void RankedCall::check_cache(const Layer& layer, std::span<const Span> spans,
                             std::span<const ConstTensorView> active_masks) {
  const Ranks::Stage& stage = layer.attention.ranks().decode();
  const AttentionShard& shard = *layer.attention.decode_;
  const KvCache& cache = *layer.cache;
  require(cache.num_key_value_heads() == shard.config.num_key_value_heads &&
              cache.head_dim() == shard.config.head_dim && cache.v_head_dim() == shard.config.v_head_dim,
          "attention: the cache has {} KV heads of {} and {}, but the layer has {} of {} and {} on this rank",
          cache.num_key_value_heads(), cache.head_dim(), cache.v_head_dim(), shard.config.num_key_value_heads,
          shard.config.head_dim, shard.config.v_head_dim);
  const TokenShare share = shard.token_share();
  const int64_t slots = cache.slots();
  std::vector<Span> own;
  int64_t tokens = 0;
  for (Span span : spans) {
    tokens += span.count;
    require(span.slot >= -1 && span.slot < slots * stage.degree, "attention: slot is {}, expected -1 to {}", span.slot,
            slots * stage.degree - 1);
    if (span.slot == -1 || span.slot / slots != stage.row) continue;
    span.slot %= slots;
    require(share.count_below(span.first_position) <= cache.length(span.slot),
            "attention: a span begins at position {}, but its slot holds less", span.first_position);
    own.push_back(span);
  }
  cache.check(own_parts(share, own), tokens_at_once(layer.attention.config(), !active_masks.empty(), tokens));
}

AttentionOutput RankedCall::run() {
  const Layer layer{.attention = attention_, .cache = input_.cache};
  agree({&layer, 1}, spans_, input_.active_masks);
  return run_agreed();
}

AttentionOutput RankedCall::run_agreed() {
  // Before rows travel, so that only their sum has to [OUT-6].
  if (!input_.residual.empty()) {
    output_.residual = residual_of(input_.hidden_states, input_, workspace_.threads());
    if (!input_.rmsnorm.empty()) hidden_states_ = output_.residual;
  }
  for (const Part& part : parts_) run_part(part);
  clear_skipped();
  return std::move(output_);
}

// The hidden states of the call, or, where ranks pass parts, of this row's tokens.
ConstTensorView RankedCall::row_input(const Part& part) {
  if (!parallel_.sequence_parallel_enabled) return hidden_states_;
  const int64_t count = part.tokens.count_of(part.stage.row);
  const int64_t bytes = row_bytes(hidden_states_);
  row_input_ = Tensor(hidden_states_.dtype(), {count, hidden_states_.size(1)});
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
  AttentionInput inner;
  inner.cache = input_.cache;
  inner.rmsnorm = input_.rmsnorm;
  inner.workspace = &workspace_;
  inner.hidden_states = row_input(part);
  inner.output = scattered ? hidden_.slice(0, part.first_passed, part.passed) : hidden_;
  std::vector<int64_t> rotary;
  if (!input_.rotary_position_ids.empty())
    for (const int64_t token : part.tokens.tokens_of(part.stage.row))
      rotary.push_back(input_.rotary_position_ids[static_cast<size_t>(token)]);
  inner.rotary_position_ids = rotary;
  if (part.prefill)
    run_prefill(part, place, inner);
  else
    run_decode(part, place, inner);
}

void RankedCall::run_prefill(const Part& part, const RankPlace& place, const AttentionInput& inner) {
  const ParallelConfig& parallel = attention_.ranks().config();
  const KvHolders holders(parallel, *attention_.prefill_, *attention_.decode_);
  const RankMesh mesh(parallel.tp_degree, part.stage.degree, parallel.switch_cc);
  const Mask mask = Mask::of(attention_.config());
  std::vector<ContextSequence> sequences;
  for (const size_t index : part.spans) {
    const Span& span = spans_[index];
    ContextSequence sequence{.span = span};
    for (int64_t row = 0; row < mesh.rows(); ++row)
      sequence.shares.push_back(SpanShare::of_row(index, span.count, mesh.rows(), row, parallel.context_split));
    if (attention_.ranks().decode().degree > 1) sequence.keeping_row = std::max<int64_t>(0, span.slot) / slots_a_row_;
    if (input_.cache == nullptr)
      sequence.begin = span.first_position;
    else if (span.slot != -1)
      sequence.kept = {std::max(span.first_position, input_.cache->first_kept(span.first_position + span.count)),
                       span.first_position + span.count - 1};
    sequences.push_back(std::move(sequence));
  }
  const ContextPlan context(std::move(sequences), mask, holders, mesh);
  ContextExchange exchange(context, mask, part.shard, *attention_.decode_, place, input_.cache, slots_a_row_,
                           workspace_);
  StepPlan plan({.tokens = part.tokens.count_of(part.stage.row),
                 .spans = exchange.spans(),
                 .rotary_position_ids = inner.rotary_position_ids,
                 .courses = exchange.courses()},
                workspace_);
  (void)AttentionCall(attention_, part.shard, inner, &place, &plan, &exchange).run();
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
