#include "kernels/attend.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/attend_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attend.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because these are compiled once per target.
#include "kernels/convert-inl.h"
#include "kernels/partial-inl.h"
#include "kernels/weigh-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace {

// A run of keys of one block that lie in one page, as panels.
struct Segment {
  int32_t first = 0;  // its first key, counted from the block's first; a multiple of kTile
  int32_t count = 0;
  PanelView keys;    // tiles of 16 keys, k over head_dim
  PanelView values;  // tiles of 16 elements of v_head_dim, k over the segment's keys

  [[nodiscard]] KeyRange range() const { return {first, first + count - 1}; }
};

// The keys of one block that a unit needs, as at most kBlock / kTile segments, and the scales of 8-bit types by key.
struct BlockKeys {
  Segment segments[kBlock / kTile];
  int count = 0;
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
};

// One block of keys of one unit.
struct BlockOfUnit {
  const Unit* unit = nullptr;  // null: none
  int64_t block = 0;
};

// Work on one unit by one thread.
class UnitKernel {
 public:
  UnitKernel(const AttendCall& call, const AttendLayout& layout, const Unit& unit, const ThreadMemory& memory)
      : call_(call),
        shape_(call.shape),
        layout_(layout),
        unit_(unit),
        memory_(memory),
        scale_(call.shape.scale, call.shape.soft_cap),
        rows_(unit.tokens * layout.group) {}

  void load_queries() const {
    for (int64_t block = 0; block < blocks(shape_.head_dim); ++block) {
      const int64_t count = std::min(kBlock, shape_.head_dim - block * kBlock);
      for (int64_t row = 0; row < rows_; ++row)
        load_row(query(row) + block * kBlock * element_bytes(), call_.dtype, count,
                 memory_.queries + (block * rows_ + row) * kBlock);
    }
  }

  // Attention of all rows over one block of keys. Rows that see none of them get an empty partial; their values are
  // written (with zeros) only in the unit's first block, whose partial the others are merged into. Meanwhile the keys
  // and values of `next` are fetched.
  void attend_block(int64_t block, const BlockOfUnit& next, const Partial& partial) const {
    const KeyRange needed = find_seen(block);
    std::fill_n(partial.maximum, layout_.row_floats, kMinusInfinity);
    std::fill_n(partial.sum, layout_.row_floats, 0.0F);
    if (block == unit_.first_block) clear_unseen(partial.weighted);
    if (needed.empty()) return;
    const BlockKeys keys = find_keys(block, next, needed);
    score(keys);
    for (int64_t row = 0; row < rows_; ++row)
      if (!memory_.seen[row].empty())
        weigh(memory_.scores + row * kBlock, memory_.seen[row], scale_, keys.key_scales, keys.value_scales,
              partial.maximum[row], partial.sum[row]);
    add_values(keys, partial.weighted);
  }

  void merge_into(const Partial& state, const Partial& partial) const {
    merge(partial, state, rows_, layout_.value_width, scale_.factor, memory_.factors);
  }

  // The last step, and the only one that knows the sinks [MATH-6].
  void finish(const Partial& state) const {
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t head = head_of(row);
      const int64_t token = unit_.first_token + row / layout_.group;
      std::byte* out = call_.out + (token * shape_.heads + head) * shape_.v_head_dim * element_bytes();
      // Exponents in double: beside a sink a score stands alone, and rounding an exponent of 100 to f32 would cost
      // its weight as many bits as the exponent has before the point.
      const float logit = shape_.sinks == nullptr ? kMinusInfinity : shape_.sinks[head];
      const double sink = static_cast<double>(logit) * kLog2E;
      if (call_.visible[token].empty()) {
        std::memset(out, 0, static_cast<size_t>(shape_.v_head_dim * element_bytes()));
        write_lse(token, head, sink, logit == kMinusInfinity ? 0.0F : 1.0F);
        continue;
      }
      const double exponent = static_cast<double>(state.maximum[row]) * scale_.exact_factor;
      const double maximum = std::max(exponent, sink);
      const float ours = power(exponent - maximum);
      const float sum = state.sum[row] * ours + (shape_.sinks == nullptr ? 0.0F : power(sink - maximum));
      const auto factor = hn::Set(F32(), ours / sum);
      float* HWY_RESTRICT weighted = state.weighted + row * layout_.value_width;
      for (int64_t i = 0; i < layout_.value_width; i += static_cast<int64_t>(kLanes))
        hn::StoreU(hn::Mul(hn::LoadU(F32(), weighted + i), factor), F32(), weighted + i);
      store_row(weighted, shape_.v_head_dim, call_.dtype, out);
      write_lse(token, head, maximum, sum);
    }
  }

 private:
  // 2^x for x <= 0; 0 where that is no normal number, as everywhere. The whole part leaves in double: what it would
  // cost the rest in f32 would show in an output that a sink keeps small.
  static float power(double x) {
    constexpr double kSmallest = -126.0;
    if (x < kSmallest) return 0.0F;
    const double whole = std::nearbyint(x);
    const float fraction = hn::GetLane(exp2_nonpositive(F32(), hn::Set(F32(), static_cast<float>(x - whole))));
    return fraction * std::bit_cast<float>((static_cast<int32_t>(whole) + 127) << 23);
  }

  void write_lse(int64_t token, int64_t head, double exponent, float sum) const {
    if (call_.lse == nullptr) return;
    constexpr double kLn2 = 0.693147180559945309;
    call_.lse[token * shape_.heads + head] =
        sum == 0.0F ? kMinusInfinity : static_cast<float>((exponent + std::log2(static_cast<double>(sum))) * kLn2);
  }

  [[nodiscard]] int64_t head_of(int64_t row) const { return unit_.kv_head * layout_.group + row % layout_.group; }
  [[nodiscard]] int64_t element_bytes() const { return static_cast<int64_t>(size_of(call_.dtype)); }
  [[nodiscard]] const std::byte* query(int64_t row) const {
    const int64_t index = (unit_.first_token + row / layout_.group) * shape_.heads + head_of(row);
    return call_.queries + index * shape_.head_dim * element_bytes();
  }
  // Whether keys are read by so many rows that decoding them once is cheaper than at each use.
  [[nodiscard]] bool decodes() const { return rows_ > kFusedRows; }

  // Fills memory_.seen; returns the keys that any row sees.
  KeyRange find_seen(int64_t block) const {
    const Interval keys{block * kBlock, block * kBlock + kBlock - 1};
    KeyRange needed;
    for (int64_t token = 0; token < unit_.tokens; ++token) {
      const Interval own = call_.visible[unit_.first_token + token].intersect(keys);
      KeyRange seen;
      if (!own.empty())
        seen = {static_cast<int32_t>(own.first - keys.first), static_cast<int32_t>(own.last - keys.first)};
      std::fill_n(memory_.seen + token * layout_.group, layout_.group, seen);
      needed = needed.unite(seen);
    }
    return needed;
  }

  // Rows without visible keys in the unit's first block: nothing else writes their values there.
  void clear_unseen(float* weighted) const {
    for (int64_t row = 0; row < rows_; ++row)
      if (memory_.seen[row].empty()) std::fill_n(weighted + row * layout_.value_width, layout_.value_width, 0.0F);
  }

  // The panels of a unit's KV head, from the page of `position` on.
  struct Panels {
    PanelView keys;
    PanelView values;
  };
  [[nodiscard]] Panels panels_at(const Unit& unit, int64_t position) const {
    const KvPages& kv = unit.span->kv;
    const int64_t page = position / kv.page_tokens;
    const int64_t offset = position % kv.page_tokens;
    PanelView keys{.type = kv.key_type, .data = kv.keys + page * kv.key_page_bytes + unit.kv_head * kv.key_head_bytes};
    keys.tile_bytes = keys.bytes_of(shape_.head_dim);
    PanelView values{.type = kv.value_type,
                     .data = kv.values + page * kv.value_page_bytes + unit.kv_head * kv.value_head_bytes};
    values.tile_bytes = values.bytes_of(kv.page_tokens);
    return {.keys = keys.from(offset / kTile, 0), .values = values.from(0, offset)};
  }

  [[nodiscard]] BlockKeys find_keys(int64_t block, const BlockOfUnit& next, KeyRange needed) const {
    const KvPages& kv = unit_.span->kv;
    BlockKeys found;
    float* key_memory = memory_.keys;
    float* value_memory = memory_.values;
    const int64_t start = block * kBlock;
    const int64_t end = start + round_up(needed.last + 1, kTile);
    for (int64_t position = start + needed.first / kTile * kTile; position < end;) {
      const int64_t count = std::min(end, (position / kv.page_tokens + 1) * kv.page_tokens) - position;
      Segment& segment = found.segments[found.count++];
      segment.first = static_cast<int32_t>(position - start);
      segment.count = static_cast<int32_t>(count);
      Panels panels = panels_at(unit_, position);
      if (next.unit != nullptr) {
        const Panels later = panels_at(*next.unit, next.block * kBlock + segment.first);
        panels.keys.ahead = later.keys.data - panels.keys.data;
        panels.values.ahead = later.values.data - panels.values.data;
      }
      if (decodes()) {
        panels.keys = decoded(panels.keys, count / kTile, shape_.head_dim, key_memory);
        panels.values = decoded(panels.values, tiles(shape_.v_head_dim), count, value_memory);
        key_memory += count * shape_.head_dim;
        value_memory += count * layout_.value_width;
      }
      segment.keys = panels.keys;
      segment.values = panels.values;
      if (kv.key_scales != nullptr) copy_scales(kv, position, segment);
      position += count;
    }
    if (kv.key_scales != nullptr) {
      found.key_scales = memory_.key_scales;
      found.value_scales = memory_.value_scales;
    }
    return found;
  }

  // The scales of a segment's tokens, side by side with those of the block's other segments.
  void copy_scales(const KvPages& kv, int64_t position, const Segment& segment) const {
    const int64_t page = position / kv.page_tokens;
    const int64_t from = (page * shape_.kv_heads + unit_.kv_head) * kv.page_tokens + position % kv.page_tokens;
    std::copy_n(kv.key_scales + from, segment.count, memory_.key_scales + segment.first);
    std::copy_n(kv.value_scales + from, segment.count, memory_.value_scales + segment.first);
  }

  // Rows that go through the kernel together. They hold whole tokens, or part of one: rows of one token see the same
  // keys, and of several tokens not, which leaves ragged ends.
  [[nodiscard]] int64_t rows_from(int64_t row, PanelType type) const {
    const int64_t most = type == PanelType::f32 ? kMaxRows : kFusedRows;
    const int64_t group = layout_.group;
    if (group <= most) return std::min(most / group * group, rows_ - row);
    const int64_t parts = (group + most - 1) / most;
    return std::min((group + parts - 1) / parts, group - row % group);
  }

  // The `part`-th of the calls that read a panel. All rows pass by the same panel: one tile of rows fetches what
  // comes next, each part by another tile.
  [[nodiscard]] PanelView fetching(PanelView panel, int64_t part, int64_t row_tile, int64_t row_tiles) const {
    if (row_tile != part % row_tiles) panel.ahead = 0;
    return panel;
  }
  [[nodiscard]] int64_t count_row_tiles(PanelType type) const {
    return (rows_ + rows_from(0, type) - 1) / rows_from(0, type);
  }

  // scores[row][key] = q . k for every key that some row of the row's tile sees.
  void score(const BlockKeys& found) const {
    // Keys at a time: their panel stays in the L1 cache while all rows pass by.
    constexpr int32_t kKeys = 4 * kTile;
    for (int s = 0; s < found.count; ++s) {
      Segment segment = found.segments[s];
      const PanelView keys = segment.keys;
      const int64_t row_tiles = count_row_tiles(keys.type);
      for (int32_t first = 0; first < segment.count; first += kKeys) {
        const KeyRange part = segment.range().intersect({segment.first + first, segment.first + first + kKeys - 1});
        int64_t row_tile = 0;
        for (int64_t row = 0; row < rows_; ++row_tile) {
          const int64_t count = rows_from(row, keys.type);
          segment.keys = fetching(keys, first / kKeys, row_tile, row_tiles);
          score_tile(segment, part, row, count);
          row += count;
        }
      }
    }
  }

  void score_tile(const Segment& segment, KeyRange part, int64_t row, int64_t count) const {
    KeyRange seen;
    for (int64_t r = row; r < row + count; ++r) seen = seen.unite(memory_.seen[r].intersect(part));
    if (seen.empty()) return;
    const int64_t first = seen.first / kTile * kTile;
    const int64_t tile_count = tiles(seen.last + 1 - first);
    float* out = memory_.scores + row * kBlock + first;
    for (int64_t k = 0; k < shape_.head_dim; k += kScoreBlock) {
      const float* queries = memory_.queries + (k / kBlock * rows_ + row) * kBlock + k % kBlock;
      multiply(queries, count, segment.keys.from((first - segment.first) / kTile, k), tile_count,
               std::min(kScoreBlock, shape_.head_dim - k), k == 0 ? Sum::start : Sum::add, out, kBlock);
    }
  }

  // weighted[row] = sum over the row's visible keys of weight * value, in order of position. Only visible keys are
  // touched: what a masked slot holds, even NaN, changes nothing.
  void add_values(const BlockKeys& found, float* weighted) const {
    const PanelType type = found.segments[0].values.type;
    const int64_t row_tiles = count_row_tiles(type);
    // Value tiles at a time: 64 KB of f32, shared by all rows.
    constexpr int64_t kValueTiles = 4;
    for (int64_t tile = 0; tile < tiles(shape_.v_head_dim); tile += kValueTiles) {
      const int64_t tile_count = std::min(kValueTiles, tiles(shape_.v_head_dim) - tile);
      int64_t row_tile = 0;
      for (int64_t row = 0; row < rows_; ++row_tile) {
        const int64_t end = row + rows_from(row, type);
        const bool fetches = row_tile == tile / kValueTiles % row_tiles;
        while (row < end) {
          int64_t count = 0;
          while (row + count < end && !memory_.seen[row + count].empty()) ++count;
          if (count > 0) add_row_tile(found, {row, count, tile, tile_count, fetches}, weighted);
          row += std::max<int64_t>(1, count);
        }
      }
    }
  }

  // Rows times value tiles.
  struct ValueTile {
    int64_t row;
    int64_t rows;
    int64_t tile;
    int64_t tiles;
    bool fetches;  // what comes next

    [[nodiscard]] ValueTile of_rows(int64_t first, int64_t count) const { return {first, count, tile, tiles, false}; }
  };

  // Keys that all rows of the tile see go through the wide kernel; the ragged ends before and after, token by token.
  void add_row_tile(const BlockKeys& found, const ValueTile& all_rows, float* weighted) const {
    KeyRange common{0, kBlock - 1};
    KeyRange all;
    const int64_t end = all_rows.row + all_rows.rows;
    for (int64_t r = all_rows.row; r < end; ++r) {
      common = common.intersect(memory_.seen[r]);
      all = all.unite(memory_.seen[r]);
    }
    // Rows of one token see the same keys and go together.
    const auto for_each_token = [&](auto&& visit) {
      for (int64_t r = all_rows.row; r < end;) {
        const int64_t n = std::min(layout_.group - r % layout_.group, end - r);
        visit(all_rows.of_rows(r, n), memory_.seen[r]);
        r += n;
      }
    };
    if (common.empty()) {
      for_each_token([&](const ValueTile& rows, KeyRange seen) { add_keys(found, rows, seen, Sum::start, weighted); });
      return;
    }
    const bool ragged_start = all.first < common.first;
    if (ragged_start)
      for_each_token([&](const ValueTile& rows, KeyRange seen) {
        add_keys(found, rows, {seen.first, common.first - 1}, Sum::start, weighted);
      });
    add_keys(found, all_rows, common, ragged_start ? Sum::resume : Sum::start, weighted);
    if (all.last > common.last)
      for_each_token([&](const ValueTile& rows, KeyRange seen) {
        if (seen.last > common.last) add_keys(found, rows, {common.last + 1, seen.last}, Sum::resume, weighted);
      });
  }

  // One chain over the keys of `part`, which may be empty: then Sum::start leaves zeros.
  void add_keys(const BlockKeys& found, const ValueTile& at, KeyRange part, Sum mode, float* weighted) const {
    float* out = weighted + at.row * layout_.value_width + at.tile * kTile;
    if (part.empty()) {
      for (int64_t r = 0; r < at.rows; ++r) std::fill_n(out + r * layout_.value_width, at.tiles * kTile, 0.0F);
      return;
    }
    for (int s = 0; s < found.count; ++s) {
      const Segment& segment = found.segments[s];
      const KeyRange own = part.intersect(segment.range());
      if (own.empty()) continue;
      PanelView values = segment.values.from(at.tile, own.first - segment.first);
      if (!at.fetches) values.ahead = 0;
      multiply(memory_.scores + at.row * kBlock + own.first, at.rows, values, at.tiles, own.size(), mode, out,
               static_cast<size_t>(layout_.value_width));
      mode = Sum::resume;
    }
  }

  const AttendCall& call_;
  const AttendShape& shape_;
  const AttendLayout& layout_;
  const Unit& unit_;
  const ThreadMemory& memory_;
  ScoreScale scale_;
  int64_t rows_;
};

// One piece of the work: of a whole unit the result, of some of its blocks a partial each in `partials`. `later` is the
// piece that this thread will most likely have next, if any.
void attend_piece(const AttendCall& call, const AttendLayout& layout, const AttendWork& work, const Piece& piece,
                  const Piece* later, float* partials, float* memory) {
  const ThreadMemory places(memory, layout);
  const Unit& unit = work.units[piece.unit];
  const UnitKernel kernel(call, layout, unit, places);
  const bool whole = partials == nullptr;
  kernel.load_queries();
  const int64_t end = piece.first_block + piece.block_count;
  for (int64_t block = piece.first_block; block < end; ++block) {
    BlockOfUnit next;
    if (block + 1 < end)
      next = {&unit, block + 1};
    else if (later != nullptr && later->block_count > 0)
      next = {&work.units[later->unit], later->first_block};
    if (!whole) {
      float* partial = partials + (unit.first_partial + block - unit.first_block) * layout.partial_floats;
      kernel.attend_block(block, next, layout.partial_at(partial));
    } else if (block == unit.first_block) {
      kernel.attend_block(block, next, places.state);
    } else {
      kernel.attend_block(block, next, places.partial);
      kernel.merge_into(places.state, places.partial);
    }
  }
  if (whole) kernel.finish(places.state);
}

// The partials of a unit's blocks, merged in order of position: the same steps as for a whole unit.
void merge_unit(const AttendCall& call, const AttendLayout& layout, const Unit& unit, float* partials, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  const auto partial = [&](int64_t index) {
    return layout.partial_at(partials + (unit.first_partial + index) * layout.partial_floats);
  };
  for (int64_t index = 1; index < unit.block_count; ++index) kernel.merge_into(partial(0), partial(index));
  kernel.finish(partial(0));
}

}  // namespace
}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace regard::kernels {
namespace {
HWY_EXPORT(attend_piece);
HWY_EXPORT(merge_unit);

// Cuts the call into units. Later tokens see more keys under causal masks, so they come first: the short units fill the
// end.
void plan_units(const AttendCall& call, const AttendLayout& layout, std::vector<Unit>& units) {
  const int64_t tokens_per_unit = layout.unit_rows / layout.group;
  units.clear();
  for (const AttendSpan& span : call.spans) {
    for (int64_t offset = (span.count - 1) / tokens_per_unit * tokens_per_unit; offset >= 0;
         offset -= tokens_per_unit) {
      const int64_t tokens = std::min(tokens_per_unit, span.count - offset);
      Interval seen{std::numeric_limits<int64_t>::max(), -1};
      for (int64_t token = 0; token < tokens; ++token) {
        const Interval own = call.visible[span.first_token + offset + token];
        if (!own.empty()) seen = {std::min(seen.first, own.first), std::max(seen.last, own.last)};
      }
      const int64_t first_block = seen.empty() ? 0 : seen.first / kBlock;
      const int64_t block_count = seen.empty() ? 0 : seen.last / kBlock - first_block + 1;
      for (int64_t head = 0; head < call.shape.kv_heads; ++head)
        units.push_back({.span = &span,
                         .kv_head = head,
                         .first_token = span.first_token + offset,
                         .tokens = tokens,
                         .first_block = first_block,
                         .block_count = block_count,
                         .first_partial = 0});
    }
  }
}

// Fewer units than this many per thread would leave threads idle at the end: then units are cut along the keys.
constexpr int64_t kUnitsPerThread = 4;

// One piece a unit; or, where units are few, several, whose partials are merged afterwards: then true.
bool plan_pieces(AttendWork& work, const Threads& threads) {
  int64_t all_blocks = 0;
  for (const Unit& unit : work.units) all_blocks += unit.block_count;
  const auto units = static_cast<int64_t>(work.units.size());
  const bool split = threads.count() > 1 && units < kUnitsPerThread * threads.count() && all_blocks > units;
  const int64_t most =
      split ? std::max<int64_t>(1, all_blocks / (2 * kUnitsPerThread * threads.count())) : all_blocks + 1;
  int64_t partials = 0;
  work.pieces.clear();
  for (size_t index = 0; index < work.units.size(); ++index) {
    Unit& unit = work.units[index];
    unit.first_partial = partials;
    partials += unit.block_count;
    int64_t block = 0;
    do {
      const int64_t count = std::min(most, unit.block_count - block);
      work.pieces.push_back({.unit = index, .first_block = unit.first_block + block, .block_count = count});
      block += count;
    } while (block < unit.block_count);
  }
  return split;
}

}  // namespace

float* AttendScratch::of_thread(int thread, size_t count) {
  Buffer& buffer = threads_[static_cast<size_t>(thread)];
  if (buffer.size() < count * sizeof(float)) buffer = Buffer(count * sizeof(float));
  return reinterpret_cast<float*>(buffer.data());
}

float* AttendScratch::shared(size_t count) {
  if (shared_.size() < count * sizeof(float)) shared_ = Buffer(count * sizeof(float));
  return reinterpret_cast<float*>(shared_.data());
}

void AttendScratch::reserve(int threads, size_t count_per_thread) {
  if (threads_.size() < static_cast<size_t>(threads)) threads_.resize(static_cast<size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) (void)of_thread(thread, count_per_thread);
}

void attend(const AttendCall& call, AttendScratch& scratch, const Threads& threads) {
  int64_t longest_span = 1;
  for (const AttendSpan& span : call.spans) longest_span = std::max(longest_span, span.count);
  const AttendLayout layout(call.shape, longest_span);
  const auto floats = static_cast<size_t>(layout.thread_floats());
  scratch.reserve(threads.count(), floats);
  AttendWork& work = scratch.work;
  plan_units(call, layout, work.units);
  if (work.units.empty()) return;
  float* partials = nullptr;
  if (plan_pieces(work, threads)) {
    const Unit& last = work.units.back();
    partials = scratch.shared(static_cast<size_t>((last.first_partial + last.block_count) * layout.partial_floats));
  }
  const auto pieces = static_cast<int64_t>(work.pieces.size());
  threads.for_each(pieces, [&](int64_t index, int thread) {
    const int64_t later = index + threads.count();
    HWY_DYNAMIC_DISPATCH(attend_piece)
    (call, layout, work, work.pieces[static_cast<size_t>(index)],
     later < pieces ? &work.pieces[static_cast<size_t>(later)] : nullptr, partials, scratch.of_thread(thread, floats));
  });
  if (partials == nullptr) return;
  threads.for_each(static_cast<int64_t>(work.units.size()), [&](int64_t index, int thread) {
    HWY_DYNAMIC_DISPATCH(merge_unit)
    (call, layout, work.units[static_cast<size_t>(index)], partials, scratch.of_thread(thread, floats));
  });
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
