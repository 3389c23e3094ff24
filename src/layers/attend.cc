#include "regard/attend.h"

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/workspace.h"
#include "layers/span_rows.h"
#include "tensor/fail.h"
#include "tensor/float_environment.h"

namespace regard {
namespace {

void check(const AttendInput& input) {
  require(input.cache != nullptr, "attend: cache is missing");
  const KvCache& cache = *input.cache;
  const ConstTensorView& q = input.queries;
  require(q.shape().rank() == 3 && q.size(2) == cache.head_dim() && q.is_dense(),
          "attend: queries has shape {}, expected [tokens, heads, {}], dense", q.shape(), cache.head_dim());
  require(is_activation(q.dtype()), "attend: queries has dtype {}, expected f32, bf16 or f16", name_of(q.dtype()));
  const int64_t heads = q.size(1);
  require(heads > 0 && heads % cache.num_key_value_heads() == 0,
          "attend: queries has {} heads, expected a multiple of the cache's {} KV heads", heads,
          cache.num_key_value_heads());
  const Shape out{q.size(0), heads, cache.v_head_dim()};
  require(input.output.shape() == out && input.output.dtype() == q.dtype() && input.output.is_dense(),
          "attend: output has shape {} and dtype {}, expected {} and {}, dense", input.output.shape(),
          name_of(input.output.dtype()), out, name_of(q.dtype()));
  const Shape lse{q.size(0), heads};
  require(input.lse.empty() || (input.lse.shape() == lse && input.lse.dtype() == DType::f32 && input.lse.is_dense()),
          "attend: lse has shape {} and dtype {}, expected {} and f32, dense", input.lse.shape(),
          name_of(input.lse.dtype()), lse);
  require(input.sinks.empty() || static_cast<int64_t>(input.sinks.size()) == heads,
          "attend: sinks has {} numbers, expected {}, one a query head", input.sinks.size(), heads);
  require(std::isfinite(input.softmax_scale) && input.softmax_scale >= 0,
          "attend: softmax_scale is {}, expected 0 (1/sqrt(head_dim)) or a positive number", input.softmax_scale);
  require(std::isfinite(input.logit_soft_cap) && input.logit_soft_cap >= 0,
          "attend: logit_soft_cap is {}, expected 0 (off) or a positive number", input.logit_soft_cap);
  input.mask.check("attend");
}

void check_spans(const AttendInput& input) {
  int64_t tokens = 0;
  for (const Span& span : input.spans) {
    require(span.count >= 1 && span.count <= input.queries.size(0) - tokens,
            "attend: spans hold more tokens than queries, which has {}", input.queries.size(0));
    tokens += span.count;
    if (span.slot == -1) continue;
    const int64_t stored = input.cache->length(span.slot);
    require(span.first_position >= 0 && span.first_position <= std::numeric_limits<int64_t>::max() - span.count,
            "attend: first_position is {}, expected 0 or more, and room for {} positions", span.first_position,
            span.count);
    // Without a causal mask the queries may be another sequence's than the keys (cross-attention).
    require(!input.mask.is_causal || span.first_position + span.count <= stored,
            "attend: a span ends at position {}, but slot {} holds {} tokens; append keys and values first",
            span.first_position + span.count, span.slot, stored);
    // The first row sees the oldest keys.
    const int64_t seen = input.mask.first_seen(span.first_position);
    require(seen >= input.cache->first_held(span.slot),
            "attend: the token at position {} of slot {} sees position {}, but only {} and later are held",
            span.first_position, span.slot, seen, input.cache->first_held(span.slot));
  }
  require(tokens == input.queries.size(0), "attend: spans hold {} tokens, but queries has {}", tokens,
          input.queries.size(0));
}

}  // namespace

void attend(const AttendInput& input) {
  const FloatEnvironment environment;
  check(input);
  check_spans(input);
  check_prefixes("attend", input.spans, input.mask.is_causal, input.active_masks);
  auto trees = make_trees("attend", input.spans, input.active_masks, input.mask.is_causal);
  std::optional<Workspace> own;
  if (input.workspace == nullptr) own.emplace();
  Workspace& workspace = own ? *own : *input.workspace;
  Workspace::Memory& memory = workspace.memory();
  const auto head_dim = static_cast<double>(input.cache->head_dim());
  const double scale = input.softmax_scale == 0 ? 1.0 / std::sqrt(head_dim) : input.softmax_scale;
  const kernels::AttendShape shape{.heads = input.queries.size(1),
                                   .kv_heads = input.cache->num_key_value_heads(),
                                   .head_dim = input.cache->head_dim(),
                                   .v_head_dim = input.cache->v_head_dim(),
                                   .scale = static_cast<float>(scale),
                                   .soft_cap = static_cast<float>(input.logit_soft_cap),
                                   .sinks = input.sinks.empty() ? nullptr : input.sinks.data()};
  copy_tails(trees, input.spans, *input.cache, {}, shape, workspace);
  memory.spans.clear();
  memory.visible.assign(static_cast<size_t>(input.queries.size(0)), Interval{});
  int64_t first = 0;
  for (size_t i = 0; i < input.spans.size(); ++i) {
    const Span& span = input.spans[i];
    const TokenTree* tree = trees.empty() || !trees[i] ? nullptr : &*trees[i];
    memory.spans.push_back(attend_span(*input.cache, span, first, tree));
    for (int64_t token = 0; token < span.count && span.slot != -1; ++token)
      memory.visible[static_cast<size_t>(first + token)] =
          visible_to(span, token, tree, input.mask, input.cache->length(span.slot));
    first += span.count;
  }
  kernels::attend({.shape = shape,
                   .spans = memory.spans,
                   .dtype = input.queries.dtype(),
                   .queries = input.queries.data(),
                   .visible = memory.visible.data(),
                   .out = input.output.data(),
                   .lse = input.lse.empty() ? nullptr : input.lse.as<float>()},
                  memory.attend, workspace.threads(), workspace.options());
}

}  // namespace regard
