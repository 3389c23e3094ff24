#include <algorithm>
#include <vector>

#include "kernels/attend.h"
#include "kernels/cache_rows.h"
#include "regard/cache.h"
#include "tensor/fail.h"

namespace regard {

// One slot: pages of kBlock tokens (fewer where the capacity is smaller), each with all heads' key panels or value
// panels.
struct KvCache::State {
  ContiguousCache options;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t page_tokens = 0;
  int64_t pages = 0;  // of a slot
  Buffer keys;
  Buffer values;
  Buffer key_scales;  // [slots * pages][kv_heads][page_tokens]; empty: the type has none
  Buffer value_scales;
  std::vector<int64_t> lengths;

  [[nodiscard]] int64_t bytes_of(int64_t elements) const {
    return elements * kernels::row_bytes_of_cache(*options.dtype) / kernels::kTile;
  }
  [[nodiscard]] int64_t key_head_bytes() const { return bytes_of(page_tokens * head_dim); }
  [[nodiscard]] int64_t value_head_bytes() const {
    return bytes_of(page_tokens * kernels::round_up(v_head_dim, kernels::kTile));
  }

  void require_slot(int64_t slot) const {
    require(slot >= 0 && slot < options.slots, "cache: slot is {}, expected 0 to {}", slot, options.slots - 1);
  }

  void check(const Span& span) const {
    require(span.slot == -1 || (span.slot >= 0 && span.slot < options.slots),
            "cache: slot is {}, expected -1 (none) or 0 to {}", span.slot, options.slots - 1);
    require(span.count >= 1, "cache: span of slot {} has count {}, expected 1 or more", span.slot, span.count);
    if (span.slot == -1) return;
    const int64_t stored = lengths[static_cast<size_t>(span.slot)];
    require(span.first_position >= 0 && span.first_position <= stored,
            "cache: first_position is {}, but slot {} holds {} tokens; expected 0 to {}", span.first_position,
            span.slot, stored, stored);
    require(span.count <= options.capacity - span.first_position,
            "cache: slot {} would hold {} tokens from position {} on, but its capacity is {}", span.slot, span.count,
            span.first_position, options.capacity);
  }

  struct Place {
    int64_t page;  // over all slots
    int64_t token;
  };
  [[nodiscard]] Place place(int64_t slot, int64_t position) const {
    return {.page = slot * pages + position / page_tokens, .token = position % page_tokens};
  }
  [[nodiscard]] kernels::HeadPanel key_panel(int64_t page, int64_t head) const {
    return {.data = keys.data() + (page * kv_heads + head) * key_head_bytes(),
            .scales = scales_at(key_scales, page, head),
            .dtype = *options.dtype,
            .page_tokens = page_tokens};
  }
  [[nodiscard]] kernels::HeadPanel value_panel(int64_t page, int64_t head) const {
    return {.data = values.data() + (page * kv_heads + head) * value_head_bytes(),
            .scales = scales_at(value_scales, page, head),
            .dtype = *options.dtype,
            .page_tokens = page_tokens};
  }

 private:
  [[nodiscard]] float* scales_at(const Buffer& scales, int64_t page, int64_t head) const {
    if (scales.size() == 0) return nullptr;
    return reinterpret_cast<float*>(scales.data()) + (page * kv_heads + head) * page_tokens;
  }
};

KvCache::KvCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

KvCache KvCache::contiguous(const ContiguousCache& options, const AttentionConfig& config) {
  const AttentionConfig layer = config.validated();
  auto state = std::make_unique<State>();
  state->options = options;
  if (options.slots == 0) state->options.slots = layer.inference.kv_cache_batch_size;
  if (options.capacity == 0) state->options.capacity = layer.inference.max_length;
  if (!options.dtype) state->options.dtype = layer.inference.attention_dtype;
  const auto& filled = state->options;
  constexpr int64_t kMost = int64_t{1} << 31;
  require(filled.slots >= 1 && filled.slots <= kMost, "cache: slots is {}, expected 1 or more", filled.slots);
  require(filled.capacity >= 1 && filled.capacity <= kMost, "cache: capacity is {}, expected 1 or more",
          filled.capacity);
  require(kernels::is_cache_type(*filled.dtype),
          "cache: dtype is {}, expected f32, bf16, f16, f8_e4m3, f8_e5m2, i8 or i4", name_of(*filled.dtype));
  state->kv_heads = layer.num_key_value_heads;
  state->head_dim = layer.head_dim;
  state->v_head_dim = layer.v_head_dim;
  state->page_tokens = std::min(kernels::kBlock, kernels::round_up(filled.capacity, kernels::kTile));
  // A page that is no divisor of a block would let a block straddle two of them.
  while (kernels::kBlock % state->page_tokens != 0) state->page_tokens += kernels::kTile;
  state->pages = kernels::round_up(filled.capacity, state->page_tokens) / state->page_tokens;
  const auto bytes = [&](int64_t head_bytes) {
    int64_t total = 0;
    require(!__builtin_mul_overflow(filled.slots * state->pages, state->kv_heads * head_bytes, &total),
            "cache: {} slots of {} tokens are more than the address space holds", filled.slots, filled.capacity);
    return static_cast<size_t>(total);
  };
  state->keys = Buffer(bytes(state->key_head_bytes()));
  state->values = Buffer(bytes(state->value_head_bytes()));
  if (kernels::has_token_scales(*filled.dtype)) {
    const auto scale_bytes = bytes(state->page_tokens * static_cast<int64_t>(sizeof(float)));
    state->key_scales = Buffer(scale_bytes);
    state->value_scales = Buffer(scale_bytes);
  }
  state->lengths.assign(static_cast<size_t>(filled.slots), 0);
  return KvCache(std::move(state));
}

int64_t KvCache::slots() const { return state_->options.slots; }
int64_t KvCache::capacity() const { return state_->options.capacity; }
DType KvCache::dtype() const { return *state_->options.dtype; }
int64_t KvCache::num_key_value_heads() const { return state_->kv_heads; }
int64_t KvCache::head_dim() const { return state_->head_dim; }
int64_t KvCache::v_head_dim() const { return state_->v_head_dim; }

int64_t KvCache::bytes_per_token() const {
  const int64_t scale_bytes = kernels::has_token_scales(dtype()) ? 2 * sizeof(float) : 0;
  const int64_t elements = state_->head_dim + kernels::round_up(state_->v_head_dim, kernels::kTile);
  return state_->bytes_of(state_->kv_heads * elements) + state_->kv_heads * scale_bytes;
}

int64_t KvCache::length(int64_t slot) const {
  state_->require_slot(slot);
  return state_->lengths[static_cast<size_t>(slot)];
}

void KvCache::check(std::span<const Span> spans) const {
  for (size_t i = 0; i < spans.size(); ++i) {
    state_->check(spans[i]);
    for (size_t j = 0; j < i; ++j)
      require(spans[i].slot == -1 || spans[i].slot != spans[j].slot,
              "cache: slot {} comes twice in one call, expected one span a slot", spans[i].slot);
  }
}

void KvCache::append(const Span& span, ConstTensorView keys, ConstTensorView values, const Threads& threads) {
  state_->check(span);
  const State& s = *state_;
  const Shape key_shape{span.count, s.kv_heads, s.head_dim};
  const Shape value_shape{span.count, s.kv_heads, s.v_head_dim};
  require(keys.shape() == key_shape, "cache: keys have shape {}, expected {}", keys.shape(), key_shape);
  require(values.shape() == value_shape, "cache: values have shape {}, expected {}", values.shape(), value_shape);
  const float* key = keys.elements<float>().data();
  const float* value = values.elements<float>().data();
  if (span.slot == -1) return;
  // A task is one head's part of a tile: its cache lines are written by one thread, one after the other.
  const int64_t first_tile = span.first_position / kernels::kTile;
  const int64_t tile_count = (span.first_position + span.count - 1) / kernels::kTile - first_tile + 1;
  const auto store = [&](int64_t task, int) {
    const int64_t head = task % s.kv_heads;
    const int64_t start = (first_tile + task / s.kv_heads) * kernels::kTile;
    const int64_t first = std::max(start, span.first_position);
    const int64_t count = std::min(start + kernels::kTile, span.first_position + span.count) - first;
    const auto place = s.place(span.slot, first);
    const auto rows = [&](const float* all, int64_t width) {
      return kernels::TokenRows{.data = all + ((first - span.first_position) * s.kv_heads + head) * width,
                                .stride = s.kv_heads * width,
                                .count = count,
                                .width = width};
    };
    kernels::store_keys(rows(key, s.head_dim), place.token, s.key_panel(place.page, head));
    kernels::store_values(rows(value, s.v_head_dim), place.token, s.value_panel(place.page, head));
  };
  threads.for_work(10 * span.count * s.kv_heads * (s.head_dim + s.v_head_dim)).for_each(tile_count * s.kv_heads, store);
  state_->lengths[static_cast<size_t>(span.slot)] = span.first_position + span.count;
}

void KvCache::truncate(int64_t slot, int64_t length) {
  state_->require_slot(slot);
  int64_t& stored = state_->lengths[static_cast<size_t>(slot)];
  require(length >= 0 && length <= stored, "cache: length is {}, but slot {} holds {} tokens", length, slot, stored);
  stored = length;
}

std::pair<Tensor, Tensor> KvCache::read(int64_t slot, int64_t first, int64_t count) const {
  const int64_t stored = length(slot);
  require(first >= 0 && count >= 0 && first <= stored && count <= stored - first,
          "cache: {} tokens from position {} of slot {} are asked for, but it holds {}", count, first, slot, stored);
  Tensor keys(DType::f32, {count, state_->kv_heads, state_->head_dim});
  Tensor values(DType::f32, {count, state_->kv_heads, state_->v_head_dim});
  float* key = keys.view().as<float>();
  float* value = values.view().as<float>();
  for (int64_t token = 0; token < count; ++token) {
    const auto place = state_->place(slot, first + token);
    for (int64_t head = 0; head < state_->kv_heads; ++head) {
      kernels::load_key(state_->key_panel(place.page, head), place.token, state_->head_dim, key);
      kernels::load_value(state_->value_panel(place.page, head), place.token, state_->v_head_dim, value);
      key += state_->head_dim;
      value += state_->v_head_dim;
    }
  }
  return {std::move(keys), std::move(values)};
}

kernels::KvPages KvCache::view(int64_t slot) const {
  state_->require_slot(slot);
  const auto type = kernels::panel_type_of_cache(dtype());
  const auto keys = state_->key_panel(slot * state_->pages, 0);
  const auto values = state_->value_panel(slot * state_->pages, 0);
  return {.key_type = type,
          .value_type = type,
          .keys = keys.data,
          .values = values.data,
          .key_scales = keys.scales,
          .value_scales = values.scales,
          .page_tokens = state_->page_tokens,
          .key_head_bytes = state_->key_head_bytes(),
          .value_head_bytes = state_->value_head_bytes(),
          .key_page_bytes = state_->kv_heads * state_->key_head_bytes(),
          .value_page_bytes = state_->kv_heads * state_->value_head_bytes()};
}

}  // namespace regard
