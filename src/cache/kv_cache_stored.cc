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

void check_rows(const char* name, const PageStore& store, const Tensor& rows, const Tensor& scales, int64_t count,
                int64_t heads) {
  const Shape row_shape{count, heads, store.bytes_of_row()};
  require(rows.dtype() == DType::u8 && rows.shape() == row_shape,
          "cache: stored {} have shape {} and dtype {}, expected {} and u8", name, rows.shape(), name_of(rows.dtype()),
          row_shape);
  const Shape scale_shape{count, heads};
  require(store.has_scales() ? scales.shape() == scale_shape && scales.dtype() == DType::f32 : scales.empty(),
          "cache: scales of stored {} have shape {}, expected {}", name, scales.shape(),
          store.has_scales() ? scale_shape.to_string() : "none");
}

}  // namespace

void KvCache::State::check_stored(const StoredTokens& tokens, int64_t count) const {
  check_rows("keys", keys, tokens.keys, tokens.key_scales, count, kv_heads);
  check_rows("values", values, tokens.values, tokens.value_scales, count, kv_heads);
}

// All but the first `skipped`; the first of all is at position `first`.
void KvCache::State::write_stored(const Slot& slot, int64_t first, int64_t skipped, const StoredTokens& tokens) {
  const auto write = [&](PageStore& store, const Tensor& rows, const Tensor& scales) {
    const int64_t count = rows.empty() ? 0 : rows.shape()[0];
    for (int64_t i = skipped * kv_heads; i < count * kv_heads; ++i) {
      const int64_t position = first + i / kv_heads;
      store.store_stored(reinterpret_cast<const std::byte*>(row_of<uint8_t>(rows, i, store.bytes_of_row())),
                         row_of<float>(scales, i, 1), slot.page(position / page_size()), i % kv_heads,
                         position % page_size());
    }
  };
  write(keys, tokens.keys, tokens.key_scales);
  write(values, tokens.values, tokens.value_scales);
}

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

void KvCache::append_stored(const Span& span, const StoredTokens& tokens) {
  State& s = *state_;
  s.check({&span, 1}, std::max<int64_t>(1, span.count));
  s.check_stored(tokens, span.count);
  if (span.slot == -1) return;
  Slot& slot = s.at(span.slot);
  s.make_room(slot, span.first_position, span.count);
  s.write_stored(slot, span.first_position, 0, tokens);
  s.set_stored(slot, span.first_position, span.first_position + span.count);
}

int64_t KvCache::stored_bytes() const { return state_->keys.stored_bytes() + state_->values.stored_bytes(); }

void KvCache::get_stored(int64_t slot, int64_t position, int64_t head, std::byte* to) const {
  const State& s = *state_;
  const int32_t page = s.slots[static_cast<size_t>(slot)].page(position / s.page_size());
  s.keys.get_stored(page, head, position % s.page_size(), to);
  s.values.get_stored(page, head, position % s.page_size(), to + s.keys.stored_bytes());
}

void KvCache::put_stored(int64_t slot, int64_t position, int64_t head, const std::byte* from) {
  State& s = *state_;
  const int32_t page = s.slots[static_cast<size_t>(slot)].page(position / s.page_size());
  s.keys.put_stored(from, page, head, position % s.page_size());
  s.values.put_stored(from + s.keys.stored_bytes(), page, head, position % s.page_size());
}

void KvCache::extend(int64_t slot, int64_t first, int64_t length) {
  State& s = *state_;
  const Span span{.slot = slot, .first_position = first, .count = length - first};
  s.check({&span, 1}, std::max<int64_t>(1, span.count));
  Slot& found = s.at(slot);
  s.make_room(found, first, span.count);
  s.set_stored(found, first, length);
}

void KvCache::restore_stored(int64_t slot, int64_t first, const StoredTokens& tokens) {
  State& s = *state_;
  Slot& found = s.empty_slot(slot);
  const int64_t count = tokens.keys.empty() ? 0 : tokens.keys.shape()[0];
  // At the start of a chunk nothing is held, and nothing needed.
  require(count > 0 || (first > 0 && first % s.page_size() == 0),
          "cache: no stored tokens are given, and position {} is no start of a page", first);
  if (count > 0) s.check_stored(tokens, count);
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
    s.take_pages(found, end_page);
  }
  const int64_t skipped = std::min(count, first_page * s.page_size() - first);
  s.write_stored(found, first, skipped, tokens);
  s.set_stored(found, first + skipped, first + count);
}

}  // namespace regard
