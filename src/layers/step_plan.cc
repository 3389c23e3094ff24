#include "layers/step_plan.h"

#include <algorithm>
#include <limits>

#include "layers/span_rows.h"
#include "layers/stage_tokens.h"
#include "tensor/fail.h"

namespace regard {
namespace {

StepMemory& memory_of(Workspace& workspace) {
  auto& memory = workspace.memory().step;
  if (!memory) memory = std::make_shared<StepMemory>();
  return *memory;
}

TensorView rows_of(Buffer& buffer, int64_t rows, int64_t columns) {
  const auto bytes = static_cast<size_t>(rows * columns) * sizeof(float);
  if (buffer.size() < bytes) buffer = Buffer(bytes);
  return TensorView(buffer.data(), DType::f32, {rows, columns});
}

}  // namespace

int64_t tokens_at_once(const AttentionConfig& config, bool has_trees, int64_t tokens) {
  // Where queries see later tokens, all keys have to be there first; and trees are not cut.
  if (!config.is_causal || has_trees) return std::max<int64_t>(1, tokens);
  // Enough for the matrix kernels to run at full speed; caches with windows have no room for more.
  const int64_t asked = config.inference.windowed_context_encoding_size;
  return asked > 0 ? std::min(asked, KvCache::kTokensAtOnce) : KvCache::kTokensAtOnce;
}

StepPlan::StepPlan(const Step& step, Workspace& workspace)
    : step_(step), workspace_(workspace), memory_(memory_of(workspace)) {
  memory_.masks = memory_.rotations = 0;
  check_spans();
  find_courses();
  begin_sequences();
  // A mask that is not causal is refused layer by layer.
  trees_ = make_trees("attention", step_.spans, step_.active_masks, true, step_.share);
  find_positions();
}

void StepPlan::check_spans() const {
  int64_t counted = 0;
  for (const Span& span : step_.spans) {
    require(span.count >= 1 && span.count <= step_.tokens - counted,
            "attention: spans hold more tokens than hidden_states, which has {}", step_.tokens);
    require(span.first_position >= 0 && span.first_position <= std::numeric_limits<int64_t>::max() - span.count,
            "attention: first_position is {}, expected 0 or more, and room for {} positions", span.first_position,
            span.count);
    counted += span.count;
  }
  require(counted == step_.tokens, "attention: spans hold {} tokens, but hidden_states has {}", counted, step_.tokens);
  require(step_.rotary_position_ids.empty() || static_cast<int64_t>(step_.rotary_position_ids.size()) == step_.tokens,
          "attention: rotary_position_ids has {} entries, expected {}, one a token", step_.rotary_position_ids.size(),
          step_.tokens);
}

void StepPlan::find_courses() {
  memory_.courses.assign(step_.courses.begin(), step_.courses.end());
  if (!step_.courses.empty()) return;
  for (const Span& span : step_.spans)
    memory_.courses.push_back({.origin = step_.has_cache ? 0 : span.first_position,
                               .first = span.first_position,
                               .end = span.first_position + span.count,
                               .prefix_end = span.prefix_end()});
}

void StepPlan::begin_sequences() {
  if (step_.has_cache) return;
  memory_.spans.assign(step_.spans.begin(), step_.spans.end());
  for (size_t i = 0; i < memory_.spans.size(); ++i) {
    Span& span = memory_.spans[i];
    span.first_position = 0;
    if (span.slot != -1) span.slot = static_cast<int64_t>(i);
  }
  step_.spans = memory_.spans;
}

void StepPlan::find_positions() {
  memory_.positions.clear();
  for (size_t i = 0; i < step_.spans.size(); ++i)
    for (int64_t token = 0; token < step_.spans[i].count; ++token)
      memory_.positions.push_back(memory_.courses[i].first +
                                  memory_.courses[i].stride * (has_tree(i) ? trees_[i]->depth(token) : token));
}

int64_t StepPlan::longest() const {
  int64_t most = 1;
  for (const Span& span : step_.spans) most = std::max(most, span.count);
  return most;
}

std::span<const int64_t> StepPlan::positions() const { return memory_.positions; }

std::span<const int64_t> StepPlan::rotary_positions() const {
  return step_.rotary_position_ids.empty() ? std::span<const int64_t>(memory_.positions) : step_.rotary_position_ids;
}

void StepPlan::check(const AttentionConfig& config, const KvCache& cache) const {
  require(step_.active_masks.empty() || config.is_causal,
          "attention: active_masks are given, but the mask is not causal");
  check_prefixes("attention", step_.spans, config.is_causal, step_.active_masks);
  require(cache.num_key_value_heads() == config.num_key_value_heads && cache.head_dim() == config.head_dim &&
              cache.v_head_dim() == config.v_head_dim,
          "attention: the cache has {} KV heads of {} and {}, but the layer has {} of {} and {}",
          cache.num_key_value_heads(), cache.head_dim(), cache.v_head_dim(), config.num_key_value_heads,
          config.head_dim, config.v_head_dim);
  if (!step_.share.is_all()) return cache.check(own_parts(step_.share, step_.spans), at_once(config));
  cache.check(step_.spans, at_once(config));
  check_reach(Mask::of(config), cache);
}

// A cache that was made for a layer with another window or chunk may give back what this one's tokens see.
void StepPlan::check_reach(const Mask& mask, const KvCache& cache) const {
  if (cache.first_seen(cache.capacity()) == 0) return;
  for (const Span& span : step_.spans)
    for (int64_t p = span.first_position; span.slot != -1 && p < span.first_position + span.count; ++p)
      require(cache.first_seen(p) <= mask.first_seen(p),
              "attention: the token at position {} sees position {}, but the cache was made for a layer whose tokens "
              "see {} and later there",
              p, mask.first_seen(p), cache.first_seen(p));
}

const Interval* StepPlan::visible(const Mask& mask) {
  const auto end = memory_.seen.begin() + static_cast<int64_t>(memory_.masks);
  const auto found = std::find_if(memory_.seen.begin(), end, [&](const auto& seen) { return seen.mask == mask; });
  if (found != end) return found->intervals.data();
  if (memory_.masks == memory_.seen.size()) memory_.seen.emplace_back();
  StepMemory::Seen& seen = memory_.seen[memory_.masks++];
  seen.mask = mask;
  seen.intervals.clear();
  for (size_t i = 0; i < step_.spans.size(); ++i) {
    const SpanCourse& course = memory_.courses[i];
    for (int64_t token = 0; token < step_.spans[i].count; ++token) {
      const int64_t position = memory_.positions[seen.intervals.size()];
      const Interval all = mask.visible(position, has_tree(i) ? position + 1 : course.end, course.prefix_end);
      seen.intervals.push_back(step_.spans[i].slot == -1 ? Interval{}
                                                         : Interval{std::max<int64_t>(0, all.first - course.origin),
                                                                    all.last - course.origin});
    }
  }
  return seen.intervals.data();
}

RowAngles StepPlan::angles(const RotaryEmbedding& rotary, int64_t first, int64_t count) {
  constexpr int64_t kWindow = 8192;
  const uint64_t rotation = rotary.key({});
  const auto end = memory_.rotated.begin() + static_cast<int64_t>(memory_.rotations);
  auto found =
      std::find_if(memory_.rotated.begin(), end, [&](const auto& rotated) { return rotated.rotation == rotation; });
  if (found == end) {
    if (memory_.rotations == memory_.rotated.size()) memory_.rotated.emplace_back();
    found = memory_.rotated.begin() + static_cast<int64_t>(memory_.rotations++);
    found->rotation = rotation;
    found->count = 0;
  }
  const int64_t half = rotary.config().rotary_dim / 2;
  const bool is_there = first >= found->first && first + count <= found->first + found->count;
  if (!is_there) {
    found->first = first;
    found->count = std::min(std::max(count, kWindow), step_.tokens - first);
  }
  const RowAngles all{.cos = rows_of(found->cos, found->count, half), .sin = rows_of(found->sin, found->count, half)};
  if (!is_there)
    write_angles(rotary,
                 rotary_positions().subspan(static_cast<size_t>(found->first), static_cast<size_t>(found->count)), all,
                 workspace_.threads());
  return {.cos = all.cos.slice(0, first - found->first, count), .sin = all.sin.slice(0, first - found->first, count)};
}

}  // namespace regard
