#include <algorithm>

#include "cache/kv_cache_state.h"

// Sequences as they are stored, bit for bit.
namespace regard {
namespace {

// Rows of a tensor [count, heads, ...], one after the other.
template <class Element>
Element* row_of(const Tensor& tensor, int64_t row, int64_t row_elements) {
  return tensor.empty() ? nullptr : tensor.view().as<Element>() + row * row_elements;
}

}  // namespace

KvCache::StoredTokens KvCache::read_stored(int64_t slot, int64_t first, int64_t count) const {
  State& s = *state_;
  s.require_stored(slot, first, count);
  const Slot& found = s.at(slot);
  const auto read = [&](const PageStore& store, Tensor& rows, Tensor& scales) {
    rows = Tensor(DType::u8, {count, s.kv_heads, store.bytes_of_row()});
    if (store.has_scales()) scales = Tensor(DType::f32, {count, s.kv_heads});
    for (int64_t i = 0; i < count * s.kv_heads; ++i) {
      const int64_t position = first + i / s.kv_heads;
      store.load_stored(found.page(position / s.page_size()), i % s.kv_heads, position % s.page_size(),
                        reinterpret_cast<std::byte*>(row_of<uint8_t>(rows, i, store.bytes_of_row())),
                        row_of<float>(scales, i, 1));
    }
  };
  StoredTokens tokens;
  read(s.keys, tokens.keys, tokens.key_scales);
  read(s.values, tokens.values, tokens.value_scales);
  return tokens;
}

void KvCache::restore_stored(int64_t slot, int64_t first, const StoredTokens& tokens) {
  State& s = *state_;
  Slot& found = s.empty_slot(slot);
  const int64_t count = tokens.keys.empty() ? 0 : tokens.keys.shape()[0];
  const auto check = [&](const char* name, const PageStore& store, const Tensor& rows, const Tensor& scales) {
    const Shape row_shape{count, s.kv_heads, store.bytes_of_row()};
    require(rows.dtype() == DType::u8 && rows.shape() == row_shape,
            "cache: stored {} have shape {} and dtype {}, expected {} and u8", name, rows.shape(),
            name_of(rows.dtype()), row_shape);
    const Shape scale_shape{count, s.kv_heads};
    require(store.has_scales() ? scales.shape() == scale_shape && scales.dtype() == DType::f32 : scales.empty(),
            "cache: scales of stored {} have shape {}, expected {}", name, scales.shape(),
            store.has_scales() ? scale_shape.to_string() : "none");
  };
  // At the start of a chunk nothing is held, and nothing needed.
  require(count > 0 || (first > 0 && first % s.page_size() == 0),
          "cache: no stored tokens are given, and position {} is no start of a page", first);
  if (count > 0) {
    check("keys", s.keys, tokens.keys, tokens.key_scales);
    check("values", s.values, tokens.values, tokens.value_scales);
  }
  require(first >= 0 && count <= s.options.capacity - first,
          "cache: slot {} would hold {} tokens from position {} on, but its capacity is {}", slot, count, first,
          s.options.capacity);
  // A page of which only the end is given is not held: its beginning is somebody else's old tokens.
  const int64_t first_page = s.pages_of(first);
  const int64_t end_page = s.pages_of(first + count);
  s.require_continues(slot, first_page, first + count);
  require(s.fixed() || end_page - first_page <= s.pool.free(), "cache: {} pages are needed, but {} are free",
          end_page - first_page, s.pool.free());
  if (!s.fixed()) {
    found.first_page = first_page;
    while (found.end_page() < end_page) found.table.push_back(s.pool.take());
  }
  const int64_t skipped = std::min(count, first_page * s.page_size() - first);
  const auto write = [&](PageStore& store, const Tensor& rows, const Tensor& scales) {
    for (int64_t i = skipped * s.kv_heads; i < count * s.kv_heads; ++i) {
      const int64_t position = first + i / s.kv_heads;
      store.store_stored(reinterpret_cast<const std::byte*>(row_of<uint8_t>(rows, i, store.bytes_of_row())),
                         row_of<float>(scales, i, 1), found.page(position / s.page_size()), i % s.kv_heads,
                         position % s.page_size());
    }
  };
  write(s.keys, tokens.keys, tokens.key_scales);
  write(s.values, tokens.values, tokens.value_scales);
  s.set_stored(found, first + skipped, first + count);
}

}  // namespace regard
