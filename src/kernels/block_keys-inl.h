// Where the keys and values of a block lie.

#if defined(REGARD_KERNELS_BLOCK_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_BLOCK_KEYS_INL_H_
#undef REGARD_KERNELS_BLOCK_KEYS_INL_H_
#else
#define REGARD_KERNELS_BLOCK_KEYS_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "kernels/attend_layout.h"
#include "kernels/microkernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {

// A run of keys of one block that lie in one page, as panels.
struct Segment {
  int32_t first = 0;  // its first key, counted from the block's first; a multiple of kTile
  int32_t count = 0;
  PanelView keys;    // tiles of 16 keys, k over head_dim
  PanelView values;  // tiles of 16 elements of v_head_dim, k over the segment's keys
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;

  [[nodiscard]] KeyRange range() const { return {first, first + count - 1}; }
};

// The keys of one block that a unit needs, as at most kBlock / kTile segments, and the scales of narrow types by key.
struct BlockKeys {
  Segment segments[kBlock / kTile];
  // The values that are to be fetched, one a segment; its own where there are none.
  const std::byte* next_values[kBlock / kTile];
  int count = 0;
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
};

// One block of keys of one unit.
struct BlockOfUnit {
  const Unit* unit = nullptr;  // null: none
  int64_t block = 0;
};

// Finds the keys of a unit's blocks.
class KeyFinder {
 public:
  KeyFinder(const AttendShape& shape, const Unit& unit, const ThreadMemory& memory)
      : shape_(shape), unit_(unit), memory_(memory) {}

  // The keys that a token of the unit needs, or all its tokens where they see the same.
  [[nodiscard]] BlockKeys find(int64_t block, const BlockOfUnit& next, KeyRange needed, int64_t token) const {
    BlockKeys found;
    const int64_t start = block * kBlock;
    const int64_t end = start + round_up(needed.last + 1, kTile);
    for (int64_t position = start + needed.first / kTile * kTile; position < end;) {
      const KvPages& kv = pages_at(position, token);
      Segment& segment = found.segments[found.count++];
      const int64_t page_end = position + kv.page_tokens - kv.offset_of(position);
      segment.first = static_cast<int32_t>(position - start);
      segment.count = static_cast<int32_t>(std::min({end, page_end, end_of_shared(position)}) - position);
      Panels panels = panels_at(kv, unit_.kv_head, position);
      found.next_values[found.count - 1] = fetch_after(panels, next, segment);
      segment.keys = panels.keys;
      segment.values = panels.values;
      segment.key_scales = scales_at(kv, kv.keys, unit_.kv_head, position);
      segment.value_scales = scales_at(kv, kv.values, unit_.kv_head, position);
      position += segment.count;
    }
    found.key_scales = join_scales(found, &Segment::key_scales, memory_.key_scales);
    found.value_scales = join_scales(found, &Segment::value_scales, memory_.value_scales);
    return found;
  }

  // Puts the block's keys and values into scratch memory as f32, as one segment: where many rows pass by them, this is
  // cheaper than to widen them, or to go from page to page, for each row tile.
  void decode(BlockKeys& found) const {
    Segment& first = found.segments[0];
    const bool several = found.count > 1;
    int64_t keys = 0;
    for (int s = 0; s < found.count; ++s) keys += found.segments[s].count;
    if (several || first.keys.type != PanelType::f32) {
      for (int s = 0; s < found.count; ++s) {
        const Segment& segment = found.segments[s];
        decode_tiles(segment.keys, segment.count / kTile, shape_.head_dim,
                     memory_.keys + (segment.first - first.first) * shape_.head_dim, shape_.head_dim * kTile);
      }
      first.keys = f32_panel(memory_.keys, shape_.head_dim);
    }
    if (several || first.values.type != PanelType::f32) {
      for (int s = 0; s < found.count; ++s) {
        const Segment& segment = found.segments[s];
        decode_tiles(segment.values, tiles(shape_.v_head_dim), segment.count,
                     memory_.values + (segment.first - first.first) * kTile, keys * kTile);
      }
      first.values = f32_panel(memory_.values, keys);
      found.next_values[0] = first.values.data;
    }
    first.count = static_cast<int32_t>(keys);
    found.count = 1;
  }

 private:
  // The panels of a unit's KV head, from `position` on to the end of its page.
  struct Panels {
    PanelView keys;
    PanelView values;
  };
  [[nodiscard]] Panels panels_at(const KvPages& kv, int64_t head, int64_t position) const {
    const int64_t page = kv.place_of(position);
    const int64_t offset = kv.offset_of(position);
    const auto panel = [&](const KvPanels& side) {
      return PanelView{.type = side.type, .data = side.data + page * side.page_bytes + head * side.head_bytes};
    };
    PanelView keys = panel(kv.keys);
    keys.tile_bytes = keys.bytes_of(shape_.head_dim);
    PanelView values = panel(kv.values);
    values.tile_bytes = values.bytes_of(kv.page_tokens);
    return {.keys = keys.from(offset / kTile, 0), .values = values.from(0, offset)};
  }

  [[nodiscard]] const KvPages& pages_at(int64_t position, int64_t token) const {
    const AttendSpan& span = *unit_.span;
    if (span.tails == nullptr || position < span.tail_start) return span.kv;
    return span.tails[unit_.first_token - span.first_token + token];
  }
  [[nodiscard]] int64_t end_of_shared(int64_t position) const {
    const AttendSpan& span = *unit_.span;
    return span.tails != nullptr && position < span.tail_start ? span.tail_start : std::numeric_limits<int64_t>::max();
  }

  // Makes the keys fetch what lies at the same place of the next block, fetches its scales, and returns its values.
  const std::byte* fetch_after(Panels& panels, const BlockOfUnit& next, const Segment& segment) const {
    if (next.unit == nullptr) return panels.values.data;
    const KvPages& kv = next.unit->span->kv;
    const int64_t position = next.block * kBlock + segment.first;
    if (!kv.holds(position)) return panels.values.data;
    const Panels later = panels_at(kv, next.unit->kv_head, position);
    panels.keys.ahead = later.keys.data - panels.keys.data;
    panels.values.ahead = later.values.data - panels.values.data;
    for (const KvPanels* side : {&kv.keys, &kv.values}) {
      const float* scales = scales_at(kv, *side, next.unit->kv_head, position);
      for (int64_t i = 0; scales != nullptr && i < segment.count; i += kTile)
        prefetch(reinterpret_cast<const std::byte*>(scales + i));
    }
    return later.values.data;
  }

  // The scales of the block's tokens, by key: where they lie, or side by side in `memory` if they lie in several pages.
  [[nodiscard]] static const float* join_scales(const BlockKeys& found, const float* Segment::*scales, float* memory) {
    const Segment& first = found.segments[0];
    if (first.*scales == nullptr) return nullptr;
    if (found.count == 1) return first.*scales - first.first;
    for (int s = 0; s < found.count; ++s)
      std::copy_n(found.segments[s].*scales, found.segments[s].count, memory + found.segments[s].first);
    return memory;
  }

  [[nodiscard]] static const float* scales_at(const KvPages& kv, const KvPanels& side, int64_t head, int64_t position) {
    if (side.scales == nullptr) return nullptr;
    return side.scales + head * side.head_scales + kv.place_of(position) * kv.page_tokens + kv.offset_of(position);
  }

  const AttendShape& shape_;
  const Unit& unit_;
  const ThreadMemory& memory_;
};

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
