#include "cache/page_store.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/fail.h"

namespace regard {
namespace {

using kernels::kTile;
using kernels::PanelSide;

std::string_view name_of(PanelSide side) { return side == PanelSide::keys ? "keys" : "values"; }

// Given scales for every head and element, or none.
std::vector<float> spread_scales(PanelSide side, const KvFormat& format, int64_t kv_heads, int64_t width) {
  if (format.scaling == KvScaling::per_token) {
    require(format.scales.empty(), "cache: {} have given scales, but their scaling is per_token", name_of(side));
    return {};
  }
  require(kernels::has_token_scales(format.dtype), "cache: {} have given scales, but their dtype is {}, which has none",
          name_of(side), name_of(format.dtype));
  const auto count = static_cast<int64_t>(format.scales.size());
  const bool per_channel = format.scaling == KvScaling::per_channel;
  const int64_t expected = format.scaling == KvScaling::per_tensor ? 1 : per_channel ? width : kv_heads;
  require(count == 0 || count == expected || (per_channel && count == kv_heads * width),
          "cache: {} have {} scales, expected {}{}", name_of(side), count, expected,
          per_channel ? " or one a channel of each KV head" : "");
  for (const float scale : format.scales)
    require(std::isfinite(scale) && scale > 0, "cache: a scale of the {} is {}, expected a positive number",
            name_of(side), scale);
  const int64_t padded = kernels::round_up(width, kTile);
  std::vector<float> factors(static_cast<size_t>(kv_heads * padded), 1.0F);
  if (count == 0) return factors;
  for (int64_t head = 0; head < kv_heads; ++head)
    for (int64_t i = 0; i < width; ++i) {
      const int64_t source = count == 1 ? 0 : !per_channel ? head : count == width ? i : head * width + i;
      factors[static_cast<size_t>(head * padded + i)] = format.scales[static_cast<size_t>(source)];
    }
  return factors;
}

int64_t checked_bytes(int64_t pages, int64_t kv_heads, int64_t head_bytes) {
  int64_t total = 0;
  require(!__builtin_mul_overflow(pages * kv_heads, head_bytes, &total) && total < (int64_t{1} << 46),
          "cache: {} pages of {} KV heads are more than the address space holds", pages, kv_heads);
  return total;
}

}  // namespace

PageStore::PageStore(PanelSide side, KvFormat format, const Sizes& sizes)
    : side_(side), format_(std::move(format)), sizes_(sizes) {
  require(kernels::is_cache_type(format_.dtype),
          "cache: dtype is {} for {}, expected f32, bf16, f16, f8_e4m3, f8_e5m2, i8 or i4",
          regard::name_of(format_.dtype), name_of(side));
  factors_ = spread_scales(side, format_, sizes.kv_heads, sizes.width);
  const int64_t rows = side == PanelSide::keys ? sizes.page_tokens / kTile * sizes.width
                                               : kernels::tiles(sizes.width) * sizes.page_tokens;
  panel_bytes_ = rows * kernels::row_bytes_of_cache(format_.dtype);
  data_ = Buffer(static_cast<size_t>(checked_bytes(sizes.pages, sizes.kv_heads, panel_bytes_)));
  if (kernels::has_token_scales(format_.dtype))
    scales_ = Buffer(static_cast<size_t>(
        checked_bytes(sizes.pages, sizes.kv_heads, sizes.page_tokens * static_cast<int64_t>(sizeof(float)))));
}

int64_t PageStore::bytes_per_token() const {
  const int64_t scale_bytes = has_scales() ? static_cast<int64_t>(sizeof(float)) : 0;
  return sizes_.kv_heads * (panel_bytes_ / sizes_.page_tokens + scale_bytes);
}

kernels::HeadPanel PageStore::panel(int32_t page, int64_t head) const {
  const int64_t index = head * sizes_.pages + page;
  return {.data = data_.data() + index * panel_bytes_,
          .scales = has_scales() ? reinterpret_cast<float*>(scales_.data()) + index * sizes_.page_tokens : nullptr,
          .dtype = format_.dtype,
          .page_tokens = sizes_.page_tokens,
          .given_scales = !factors_.empty()};
}

kernels::KvPanels PageStore::view() const {
  const kernels::HeadPanel first = panel(0, 0);
  return {.type = kernels::panel_type_of_cache(format_.dtype),
          .data = first.data,
          .scales = first.scales,
          .factors = factors_.empty() ? nullptr : factors_.data(),
          .head_bytes = sizes_.pages * panel_bytes_,
          .page_bytes = panel_bytes_,
          .head_scales = sizes_.pages * sizes_.page_tokens};
}

void PageStore::store(const kernels::TokenRows& rows, int32_t page, int64_t head, int64_t token) {
  const auto write = [&](const kernels::TokenRows& numbers) {
    if (side_ == PanelSide::keys)
      kernels::store_keys(numbers, token, panel(page, head));
    else
      kernels::store_values(numbers, token, panel(page, head));
  };
  if (factors_.empty()) return write(rows);
  thread_local std::vector<float> scaled;  // kept, so that steady calls allocate nothing
  scaled.resize(static_cast<size_t>(rows.count * rows.width));
  const float* factors = factors_.data() + head * kernels::round_up(rows.width, kTile);
  for (int64_t i = 0; i < rows.count; ++i)
    for (int64_t d = 0; d < rows.width; ++d)
      scaled[static_cast<size_t>(i * rows.width + d)] = rows.data[i * rows.stride + d] / factors[d];
  write({.data = scaled.data(), .stride = rows.width, .count = rows.count, .width = rows.width});
}

void PageStore::load(int32_t page, int64_t head, int64_t token, float* out) const {
  if (side_ == PanelSide::keys)
    kernels::load_key(panel(page, head), token, sizes_.width, out);
  else
    kernels::load_value(panel(page, head), token, sizes_.width, out);
  if (factors_.empty()) return;
  const float* factors = factors_.data() + head * kernels::round_up(sizes_.width, kTile);
  for (int64_t d = 0; d < sizes_.width; ++d) out[d] *= factors[d];
}

void PageStore::copy_page(int32_t from, int32_t to) {
  for (int64_t head = 0; head < sizes_.kv_heads; ++head) {
    const kernels::HeadPanel source = panel(from, head);
    const kernels::HeadPanel target = panel(to, head);
    std::memcpy(target.data, source.data, static_cast<size_t>(panel_bytes_));
    if (has_scales()) std::copy_n(source.scales, sizes_.page_tokens, target.scales);
  }
}

kernels::PanelElements PageStore::elements(int32_t page, int64_t head) const {
  return {side_, kernels::panel_type_of_cache(format_.dtype), panel(page, head).data, sizes_.page_tokens, sizes_.width};
}

void PageStore::copy_token(int32_t from, int64_t from_token, int32_t to, int64_t to_token) {
  for (int64_t head = 0; head < sizes_.kv_heads; ++head) {
    elements(to, head).copy_token(elements(from, head), from_token, to_token);
    if (has_scales()) panel(to, head).scales[to_token] = panel(from, head).scales[from_token];
  }
}

int64_t PageStore::bytes_of_row() const { return sizes_.width * elements(0, 0).bytes(); }

void PageStore::load_stored(int32_t page, int64_t head, int64_t token, std::byte* row, float* scale) const {
  elements(page, head).get_token(token, row);
  if (has_scales()) *scale = panel(page, head).scales[token];
}

void PageStore::store_stored(const std::byte* row, const float* scale, int32_t page, int64_t head, int64_t token) {
  elements(page, head).put_token(row, token);
  if (has_scales()) panel(page, head).scales[token] = *scale;
}

void PageStore::get_stored(int32_t page, int64_t head, int64_t token, std::byte* to) const {
  elements(page, head).get_token(token, to);
  if (has_scales()) std::memcpy(to + bytes_of_row(), panel(page, head).scales + token, sizeof(float));
}

void PageStore::put_stored(const std::byte* from, int32_t page, int64_t head, int64_t token) {
  elements(page, head).put_token(from, token);
  if (has_scales()) std::memcpy(panel(page, head).scales + token, from + bytes_of_row(), sizeof(float));
}

KvFormat KvFormat::fitted(DType dtype, KvScaling scaling, ConstTensorView sample) {
  require(kernels::is_cache_type(dtype) && kernels::has_token_scales(dtype),
          "cache: a format of dtype {} is to be fitted, which has no scales", regard::name_of(dtype));
  require(scaling != KvScaling::per_token, "cache: scales per token are computed as tokens come, not fitted");
  require(sample.shape().rank() == 3, "cache: sample has shape {}, expected [tokens, kv_heads, head_dim]",
          sample.shape());
  const int64_t heads = sample.size(1);
  const int64_t width = sample.size(2);
  const int64_t count = scaling == KvScaling::per_tensor ? 1 : scaling == KvScaling::per_head ? heads : heads * width;
  const std::span<const float> numbers = sample.elements<float>();
  std::vector<float> largest(static_cast<size_t>(count), 0.0F);
  for (size_t i = 0; i < numbers.size(); ++i) {
    require(std::isfinite(numbers[i]), "cache: sample holds {}, expected finite numbers", numbers[i]);
    const int64_t channel = static_cast<int64_t>(i) % (heads * width);
    auto& top = largest[static_cast<size_t>(count == 1 ? 0 : count == heads ? channel / width : channel)];
    top = std::max(top, std::abs(numbers[i]));
  }
  // What the sample leaves at zero takes any scale, and none is so small that it is no number.
  constexpr float kSmallest = std::numeric_limits<float>::min();
  for (float& top : largest) top = top > 0 ? std::max(kSmallest, top / kernels::largest_of_cache(dtype)) : 1.0F;
  return {.dtype = dtype, .scaling = scaling, .scales = std::move(largest)};
}

}  // namespace regard
