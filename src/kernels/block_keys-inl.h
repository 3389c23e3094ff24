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

// Keys, or values, of one block that lie in one piece of memory.
struct KeyRun {
  int32_t first = 0;  // its first key, counted from the block's first; a multiple of kTile
  int32_t count = 0;
  PanelView panel;  // tiles of 16 keys, k over head_dim; or tiles of 16 elements of v_head_dim, k over the run's keys
  const float* scales = nullptr;  // of narrow types, by key

  [[nodiscard]] KeyRange range() const { return {first, first + count - 1}; }
};

// All of one block that a unit needs: of a page each, or more where pages follow each other in memory and their panels
// are one.
class KeyRuns {
 public:
  [[nodiscard]] const KeyRun* begin() const { return runs_; }
  [[nodiscard]] const KeyRun* end() const { return runs_ + count_; }
  [[nodiscard]] int64_t size() const { return count_; }
  void add(const KeyRun& run) { runs_[count_++] = run; }
  // The same for keys: their tiles are independent of where a page ends.
  void add_or_join(const KeyRun& run) {
    if (count_ > 0) {
      KeyRun& last = runs_[count_ - 1];
      const int64_t bytes = last.count / kTile * last.panel.tile_bytes;
      const bool follows = run.panel.data == last.panel.data + bytes && run.panel.ahead == last.panel.ahead &&
                           (run.scales == nullptr || run.scales == last.scales + last.count);
      if (follows) {
        last.count += run.count;
        return;
      }
    }
    add(run);
  }

 private:
  KeyRun runs_[kBlock / kTile];
  int64_t count_ = 0;
};

struct BlockKeys {
  KeyRuns keys;
  KeyRuns values;
  // The scales of narrow types, by key of the block.
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
      const int64_t page_end = position + kv.page_tokens - kv.offset_of(position);
      const int64_t count = std::min({end, page_end, end_of_shared(position)}) - position;
      Panels panels = panels_at(kv, unit_.kv_head, position);
      fetch_after(panels, next, position - start, count);
      const auto run = [&](const KvPanels& side, const PanelView& panel) {
        return KeyRun{.first = static_cast<int32_t>(position - start),
                      .count = static_cast<int32_t>(count),
                      .panel = panel,
                      .scales = scales_at(kv, side, unit_.kv_head, position)};
      };
      found.keys.add_or_join(run(kv.keys, panels.keys));
      found.values.add(run(kv.values, panels.values));
      position += count;
    }
    found.key_scales = join_scales(found.keys, memory_.key_scales);
    found.value_scales = join_scales(found.values, memory_.value_scales);
    return found;
  }

  // Puts the block's keys and values into scratch memory as f32, each as one run: where many rows pass by them, this is
  // cheaper than to widen them, or to go from page to page, for each row tile.
  void decode(BlockKeys& found) const {
    if (KeyRun whole = whole_run(found.keys); needs_decoding(found.keys)) {
      for (const KeyRun& run : found.keys)
        decode_tiles(run.panel, run.count / kTile, shape_.head_dim,
                     memory_.keys + (run.first - whole.first) * shape_.head_dim, shape_.head_dim * kTile);
      whole.panel = f32_panel(memory_.keys, shape_.head_dim);
      found.keys = {};
      found.keys.add(whole);
    }
    if (KeyRun whole = whole_run(found.values); needs_decoding(found.values)) {
      for (const KeyRun& run : found.values)
        decode_tiles(run.panel, tiles(shape_.v_head_dim), run.count, memory_.values + (run.first - whole.first) * kTile,
                     whole.count * kTile);
      whole.panel = f32_panel(memory_.values, whole.count);
      found.values = {};
      found.values.add(whole);
    }
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

  [[nodiscard]] static bool needs_decoding(const KeyRuns& runs) {
    return runs.size() > 1 || runs.begin()->panel.type != PanelType::f32;
  }
  // The keys of all runs as one, whose panel is to be made.
  [[nodiscard]] static KeyRun whole_run(const KeyRuns& runs) {
    KeyRun whole;
    whole.first = runs.begin()->first;
    for (const KeyRun& run : runs) whole.count += run.count;
    return whole;
  }

  // Makes the panels fetch what lies at the same place of the next block, and fetches its scales.
  void fetch_after(Panels& panels, const BlockOfUnit& next, int64_t first, int64_t count) const {
    if (next.unit == nullptr) return;
    const KvPages& kv = next.unit->span->kv;
    const int64_t position = next.block * kBlock + first;
    if (!kv.holds(position)) return;
    const Panels later = panels_at(kv, next.unit->kv_head, position);
    panels.keys.ahead = later.keys.data - panels.keys.data;
    panels.values.ahead = later.values.data - panels.values.data;
    for (const KvPanels* side : {&kv.keys, &kv.values}) {
      const float* scales = scales_at(kv, *side, next.unit->kv_head, position);
      for (int64_t i = 0; scales != nullptr && i < count; i += kTile)
        prefetch(reinterpret_cast<const std::byte*>(scales + i));
    }
  }

  // The scales of the block's tokens, by key: where they lie, or put side by side in `memory` if they don't lie so.
  [[nodiscard]] static const float* join_scales(const KeyRuns& runs, float* memory) {
    const KeyRun& first = *runs.begin();
    if (first.scales == nullptr) return nullptr;
    const float* scales = first.scales - first.first;
    const auto follows = [&](const KeyRun& run) { return run.scales == scales + run.first; };
    if (std::ranges::all_of(runs, follows)) return scales;
    for (const KeyRun& run : runs) std::copy_n(run.scales, run.count, memory + run.first);
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
