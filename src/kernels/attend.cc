#include "kernels/attend.h"

#include <cmath>
#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attend.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because these are compiled once per target.
#include <hwy/contrib/math/math-inl.h>

#include "kernels/convert-inl.h"
#include "kernels/exp2-inl.h"
#include "kernels/microkernel-inl.h"

#ifndef REGARD_KERNELS_ATTEND_ONCE_
#define REGARD_KERNELS_ATTEND_ONCE_
namespace regard::kernels {

using Unit = AttendScratch::Unit;

// Rows (tokens times query heads of a group) a unit aims at: enough to use each key block many times, few
// enough that scores, partials and a key block share the L2 cache. A multiple of every target's row tile.
inline constexpr int64_t kUnitRows = 240;

// Scores are sums over head_dim that start afresh at multiples of this: an error in a score goes through exp, so their
// chains are shorter than a projection's. 32 halves the error of one chain over 128 and costs 3 % of the time.
inline constexpr int64_t kScoreBlock = 32;
static_assert(kBlock % kScoreBlock == 0);

inline constexpr float kLog2E = 1.44269504F;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Partial attention of rows over some keys: weighted values and, in powers of two, the largest score and the sum of
// weights relative to it. Partials over disjoint keys merge.
struct Partial {
  float* weighted;  // [rows][value_width]
  float* maximum;   // [rows], score * log2(e)
  float* sum;       // [rows]
};

// Sizes that follow from a call, and the places in a thread's scratch memory.
struct Layout {
  int64_t group;        // query heads a KV head
  int64_t unit_rows;    // the most rows of a unit
  int64_t value_width;  // v_head_dim, padded to whole tiles
  int64_t query_floats;
  int64_t score_floats;
  int64_t partial_floats;  // of one Partial
  int64_t key_floats;      // of a decoded key block
  int64_t value_floats;

  Layout(const AttendShape& shape, int64_t longest_span)
      : group(shape.heads / shape.kv_heads),
        unit_rows(group * std::clamp<int64_t>(kUnitRows / group, 1, longest_span)),
        value_width(round_up(shape.v_head_dim, kTile)),
        query_floats(blocks(shape.head_dim) * unit_rows * kBlock),
        score_floats(unit_rows * kBlock),
        partial_floats(unit_rows * value_width + 2 * round_up(unit_rows, kTile)),
        key_floats(kBlock * shape.head_dim),
        value_floats(kBlock * value_width) {}

  [[nodiscard]] int64_t thread_floats() const {
    return query_floats + score_floats + 2 * partial_floats + key_floats + value_floats;
  }
  [[nodiscard]] Partial partial_at(float* memory) const {
    return {.weighted = memory,
            .maximum = memory + unit_rows * value_width,
            .sum = memory + unit_rows * value_width + round_up(unit_rows, kTile)};
  }
};

}  // namespace regard::kernels
#endif  // once

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace {

// A run of keys that lie in one page, as panels.
struct Segment {
  int64_t first = 0;  // position of its first key, a multiple of kTile
  int64_t count = 0;
  PanelView keys;    // tiles of 16 keys, k over head_dim
  PanelView values;  // tiles of 16 elements of v_head_dim, k over the segment's keys
};

// The keys of one block that a unit needs, as at most kBlock / kTile segments.
struct BlockKeys {
  Segment segments[kBlock / kTile];
  int count = 0;
};

struct ThreadMemory {
  float* queries;
  float* scores;
  Partial state;
  Partial partial;
  float* keys;
  float* values;

  ThreadMemory(float* memory, const Layout& layout)
      : queries(memory),
        scores(queries + layout.query_floats),
        state(layout.partial_at(scores + layout.score_floats)),
        partial(layout.partial_at(scores + layout.score_floats + layout.partial_floats)),
        keys(scores + layout.score_floats + 2 * layout.partial_floats),
        values(keys + layout.key_floats) {}
};

// Work on one unit by one thread.
class UnitKernel {
 public:
  UnitKernel(const AttendCall& call, const Layout& layout, const Unit& unit, const ThreadMemory& memory)
      : call_(call),
        shape_(call.shape),
        layout_(layout),
        unit_(unit),
        memory_(memory),
        rows_(unit.tokens * layout.group) {}

  void load_queries() const {
    for (int64_t block = 0; block < blocks(shape_.head_dim); ++block) {
      const int64_t count = std::min(kBlock, shape_.head_dim - block * kBlock);
      for (int64_t row = 0; row < rows_; ++row)
        load_row(query(row) + block * kBlock * element_bytes(), call_.dtype, count,
                 memory_.queries + (block * rows_ + row) * kBlock);
    }
  }

  // Attention of all rows over one block of keys. Rows that see none of them keep what `partial` held.
  void attend_block(int64_t block, const Partial& partial) const {
    const Interval keys{block * kBlock, block * kBlock + kBlock - 1};
    Interval needed{keys.last, keys.first};
    for (int64_t token = 0; token < unit_.tokens; ++token) {
      const Interval seen = visible(token).intersect(keys);
      if (!seen.empty()) needed = {std::min(needed.first, seen.first), std::max(needed.last, seen.last)};
    }
    if (needed.empty()) return;
    const BlockKeys segments = find_keys(needed);
    score(segments, keys);
    for (int64_t row = 0; row < rows_; ++row) {
      const Interval seen = row_visible(row, keys);
      if (!seen.empty()) weigh(memory_.scores + row * kBlock, seen, partial.maximum[row], partial.sum[row]);
    }
    add_values(segments, keys, partial.weighted);
  }

  void clear(const Partial& state) const {
    std::memset(state.weighted, 0, static_cast<size_t>(rows_ * layout_.value_width) * sizeof(float));
    std::fill_n(state.maximum, rows_, kMinusInfinity);
    std::fill_n(state.sum, rows_, 0.0F);
  }

  // Merges the partial of `block` into the state, row by row; rows that see none of the block stay as they are.
  void merge(int64_t block, const Partial& partial, const Partial& state) const {
    const Interval keys{block * kBlock, block * kBlock + kBlock - 1};
    for (int64_t row = 0; row < rows_; ++row) {
      if (row_visible(row, keys).empty()) continue;
      const float maximum = std::max(state.maximum[row], partial.maximum[row]);
      const auto ours = exp2_nonpositive(F32(), hn::Set(F32(), state.maximum[row] - maximum));
      const auto theirs = exp2_nonpositive(F32(), hn::Set(F32(), partial.maximum[row] - maximum));
      float* HWY_RESTRICT to = state.weighted + row * layout_.value_width;
      const float* HWY_RESTRICT from = partial.weighted + row * layout_.value_width;
      for (int64_t i = 0; i < layout_.value_width; i += static_cast<int64_t>(kLanes))
        hn::StoreU(hn::MulAdd(hn::LoadU(F32(), from + i), theirs, hn::Mul(hn::LoadU(F32(), to + i), ours)), F32(),
                   to + i);
      state.sum[row] = hn::GetLane(
          hn::MulAdd(hn::Set(F32(), partial.sum[row]), theirs, hn::Mul(hn::Set(F32(), state.sum[row]), ours)));
      state.maximum[row] = maximum;
    }
  }

  // The last step, and the only one that knows the sinks [MATH-6].
  void finish(const Partial& state) const {
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t head = head_of(row);
      const int64_t token = unit_.first_token + row / layout_.group;
      std::byte* out = call_.out + (token * shape_.heads + head) * shape_.v_head_dim * element_bytes();
      const float sink = shape_.sinks == nullptr ? kMinusInfinity : shape_.sinks[head] * kLog2E;
      if (call_.visible[token].empty()) {
        std::memset(out, 0, static_cast<size_t>(shape_.v_head_dim * element_bytes()));
        write_lse(token, head, sink, sink == kMinusInfinity ? 0.0F : 1.0F);
        continue;
      }
      const float maximum = std::max(state.maximum[row], sink);
      const float ours = power(state.maximum[row] - maximum);
      const float sum = state.sum[row] * ours + (shape_.sinks == nullptr ? 0.0F : power(sink - maximum));
      const float factor = ours / sum;
      float* HWY_RESTRICT weighted = state.weighted + row * layout_.value_width;
      for (int64_t i = 0; i < shape_.v_head_dim; ++i) weighted[i] *= factor;
      store_row(weighted, shape_.v_head_dim, call_.dtype, out);
      write_lse(token, head, maximum, sum);
    }
  }

 private:
  static float power(float x) { return hn::GetLane(exp2_nonpositive(F32(), hn::Set(F32(), x))); }

  void write_lse(int64_t token, int64_t head, float maximum, float sum) const {
    if (call_.lse == nullptr) return;
    constexpr double kLn2 = 0.693147180559945309;
    call_.lse[token * shape_.heads + head] =
        sum == 0.0F ? kMinusInfinity
                    : static_cast<float>((static_cast<double>(maximum) + std::log2(static_cast<double>(sum))) * kLn2);
  }

  [[nodiscard]] int64_t head_of(int64_t row) const { return unit_.kv_head * layout_.group + row % layout_.group; }
  [[nodiscard]] int64_t element_bytes() const { return static_cast<int64_t>(size_of(call_.dtype)); }
  [[nodiscard]] const std::byte* query(int64_t row) const {
    const int64_t index = (unit_.first_token + row / layout_.group) * shape_.heads + head_of(row);
    return call_.queries + index * shape_.head_dim * element_bytes();
  }
  [[nodiscard]] Interval visible(int64_t token) const { return call_.visible[unit_.first_token + token]; }
  [[nodiscard]] Interval row_visible(int64_t row, Interval keys) const {
    return visible(row / layout_.group).intersect(keys);
  }
  // Whether keys are read by so many rows that decoding them once is cheaper than at each use.
  [[nodiscard]] bool decodes() const { return rows_ > kFusedRows; }

  [[nodiscard]] BlockKeys find_keys(Interval needed) const {
    const KvPages& kv = unit_.span->kv;
    BlockKeys found;
    float* key_memory = memory_.keys;
    float* value_memory = memory_.values;
    for (int64_t position = needed.first / kTile * kTile; position <= needed.last;) {
      const int64_t page = position / kv.page_tokens;
      const int64_t offset = position % kv.page_tokens;
      const int64_t count = std::min(round_up(needed.last + 1, kTile), (page + 1) * kv.page_tokens) - position;
      Segment& segment = found.segments[found.count++];
      segment.first = position;
      segment.count = count;
      segment.keys = PanelView{.type = kv.key_type,
                               .data = kv.keys + page * kv.key_page_bytes + unit_.kv_head * kv.key_head_bytes};
      segment.keys.tile_bytes = segment.keys.bytes_of(shape_.head_dim);
      segment.keys = segment.keys.from(offset / kTile, 0);
      segment.values = PanelView{.type = kv.value_type,
                                 .data = kv.values + page * kv.value_page_bytes + unit_.kv_head * kv.value_head_bytes};
      segment.values.tile_bytes = segment.values.bytes_of(kv.page_tokens);
      segment.values = segment.values.from(0, offset);
      if (decodes()) {
        segment.keys = decoded(segment.keys, count / kTile, shape_.head_dim, key_memory);
        segment.values = decoded(segment.values, tiles(shape_.v_head_dim), count, value_memory);
        key_memory += count * shape_.head_dim;
        value_memory += count * layout_.value_width;
      }
      position += count;
    }
    return found;
  }

  [[nodiscard]] int64_t row_tile(PanelType type) const { return type == PanelType::f32 ? kMaxRows : kFusedRows; }

  // scores[row][key - keys.first] = q . k for every key that some row of the row's tile sees.
  void score(const BlockKeys& found, Interval keys) const {
    // Keys at a time: their panel stays in the L1 cache while all rows pass by.
    constexpr int64_t kKeys = 4 * kTile;
    for (int s = 0; s < found.count; ++s) {
      const Segment& segment = found.segments[s];
      const int64_t step = row_tile(segment.keys.type);
      for (int64_t first = 0; first < segment.count; first += kKeys) {
        const Interval part{segment.first + first, segment.first + std::min(first + kKeys, segment.count) - 1};
        for (int64_t row = 0; row < rows_; row += step)
          score_tile(segment, part, keys, row, std::min(step, rows_ - row));
      }
    }
  }

  void score_tile(const Segment& segment, Interval part, Interval keys, int64_t row, int64_t count) const {
    Interval seen{part.last, part.first - 1};
    for (int64_t r = row; r < row + count; ++r) {
      const Interval own = row_visible(r, part);
      if (!own.empty()) seen = {std::min(seen.first, own.first), std::max(seen.last, own.last)};
    }
    if (seen.empty()) return;
    const int64_t first = seen.first / kTile * kTile;
    const int64_t tile_count = tiles(seen.last + 1 - first);
    float* out = memory_.scores + row * kBlock + (first - keys.first);
    for (int64_t k = 0; k < shape_.head_dim; k += kScoreBlock) {
      const float* queries = memory_.queries + (k / kBlock * rows_ + row) * kBlock + k % kBlock;
      multiply(queries, count, segment.keys.from((first - segment.first) / kTile, k), tile_count,
               std::min(kScoreBlock, shape_.head_dim - k), k == 0 ? Sum::start : Sum::add, out, kBlock);
    }
  }

  [[nodiscard]] Vec scaled(Vec score) const {
    if (shape_.soft_cap == 0.0F) return hn::Mul(score, hn::Set(F32(), shape_.scale * kLog2E));
    const auto capped = hn::Tanh(F32(), hn::Mul(score, hn::Set(F32(), shape_.scale / shape_.soft_cap)));
    return hn::Mul(capped, hn::Set(F32(), shape_.soft_cap * kLog2E));
  }

  // Lanes of the vector at `key` whose positions lie inside `seen`.
  static hn::Mask<F32> inside(int64_t key, Interval seen) {
    const hn::RebindToSigned<F32> di;
    const auto position = hn::Iota(di, static_cast<int32_t>(key));
    const auto outside = hn::Or(hn::Lt(position, hn::Set(di, static_cast<int32_t>(seen.first))),
                                hn::Gt(position, hn::Set(di, static_cast<int32_t>(seen.last))));
    return hn::RebindMask(F32(), hn::Not(outside));
  }

  // Turns the scores of one row into weights 2^(score - maximum), 0 outside `seen`. The 16 running sums are those of
  // the keys with equal position modulo 16, whatever the vector width.
  void weigh(float* HWY_RESTRICT scores, Interval seen, float& maximum, float& sum) const {
    seen = {seen.first % kBlock, seen.last % kBlock};
    const int64_t begin = seen.first / kTile * kTile;
    const int64_t end = round_up(seen.last + 1, kTile);
    const auto minus_infinity = hn::Set(F32(), kMinusInfinity);
    auto largest = minus_infinity;
    for (int64_t key = begin; key < end; key += static_cast<int64_t>(kLanes)) {
      const auto value = hn::IfThenElse(inside(key, seen), scaled(hn::LoadU(F32(), scores + key)), minus_infinity);
      hn::StoreU(value, F32(), scores + key);
      largest = hn::Max(largest, value);
    }
    const auto top = hn::MaxOfLanes(F32(), largest);
    Vec sums[kVectors];
    REGARD_UNROLL
    for (size_t v = 0; v < kVectors; ++v) sums[v] = hn::Zero(F32());
    for (int64_t key = begin; key < end; key += kTile) {
      REGARD_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        float* at = scores + key + v * kLanes;
        const auto weight = exp2_nonpositive(F32(), hn::Sub(hn::LoadU(F32(), at), top));
        hn::StoreU(weight, F32(), at);
        sums[v] = hn::Add(sums[v], weight);
      }
    }
    // A NaN among the visible scores makes its own weight NaN, and so the sum and the output.
    maximum = hn::GetLane(top);
    alignas(64) float running[kTile];
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[v], F32(), running + v * kLanes);
    for (int64_t width = kTile / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) running[i] += running[i + width];
    sum = running[0];
  }

  // weighted[row] = sum over the row's visible keys of weight * value, in order of position. Only visible keys are
  // touched: what a masked slot holds, even NaN, changes nothing.
  void add_values(const BlockKeys& found, Interval keys, float* weighted) const {
    const int64_t step = row_tile(found.segments[0].values.type);
    // Value tiles at a time: 64 KB of f32, shared by all rows.
    constexpr int64_t kValueTiles = 4;
    for (int64_t tile = 0; tile < tiles(shape_.v_head_dim); tile += kValueTiles) {
      const int64_t tile_count = std::min(kValueTiles, tiles(shape_.v_head_dim) - tile);
      for (int64_t row = 0; row < rows_;) {
        if (row_visible(row, keys).empty()) {
          ++row;
          continue;
        }
        int64_t count = 1;
        while (count < step && row + count < rows_ && !row_visible(row + count, keys).empty()) ++count;
        add_row_tile(found, keys, row, count, tile, tile_count, weighted);
        row += count;
      }
    }
  }

  // Keys that all rows of the tile see go through the wide kernel; the ragged ends before and after, row by row.
  void add_row_tile(const BlockKeys& found, Interval keys, int64_t row, int64_t count, int64_t tile, int64_t tile_count,
                    float* weighted) const {
    Interval common = keys;
    for (int64_t r = row; r < row + count; ++r) common = common.intersect(row_visible(r, keys));
    const auto add = [&](int64_t r, int64_t n, Interval part, Sum mode) {
      add_keys(found, keys, r, n, part, tile, tile_count, mode, weighted);
    };
    // Rows of one token see the same keys and go together.
    const auto for_each_run = [&](auto&& visit) {
      for (int64_t r = row; r < row + count;) {
        int64_t n = 1;
        while (r + n < row + count && (r + n) % layout_.group != 0) ++n;
        visit(r, n, row_visible(r, keys));
        r += n;
      }
    };
    if (common.empty()) {
      for_each_run([&](int64_t r, int64_t n, Interval seen) { add(r, n, seen, Sum::start); });
      return;
    }
    bool ragged_start = false;
    for_each_run([&](int64_t, int64_t, Interval seen) { ragged_start |= seen.first < common.first; });
    if (ragged_start)
      for_each_run([&](int64_t r, int64_t n, Interval seen) { add(r, n, {seen.first, common.first - 1}, Sum::start); });
    add(row, count, common, ragged_start ? Sum::resume : Sum::start);
    for_each_run([&](int64_t r, int64_t n, Interval seen) {
      if (seen.last > common.last) add(r, n, {common.last + 1, seen.last}, Sum::resume);
    });
  }

  // One chain over the keys of `part`, which may be empty: then Sum::start leaves zeros.
  void add_keys(const BlockKeys& found, Interval keys, int64_t row, int64_t count, Interval part, int64_t tile,
                int64_t tile_count, Sum mode, float* weighted) const {
    float* out = weighted + row * layout_.value_width + tile * kTile;
    const auto stride = static_cast<size_t>(layout_.value_width);
    if (part.empty()) {
      for (int64_t r = 0; r < count; ++r) std::fill_n(out + r * layout_.value_width, tile_count * kTile, 0.0F);
      return;
    }
    for (int s = 0; s < found.count; ++s) {
      const Segment& segment = found.segments[s];
      const Interval own = part.intersect({segment.first, segment.first + segment.count - 1});
      if (own.empty()) continue;
      multiply(memory_.scores + row * kBlock + (own.first - keys.first), count,
               segment.values.from(tile, own.first - segment.first), tile_count, own.size(), mode, out, stride);
      mode = Sum::resume;
    }
  }

  const AttendCall& call_;
  const AttendShape& shape_;
  const Layout& layout_;
  const Unit& unit_;
  const ThreadMemory& memory_;
  int64_t rows_;
};

// A whole unit, its blocks merged as they come.
void attend_unit(const AttendCall& call, const Layout& layout, const Unit& unit, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  kernel.load_queries();
  kernel.clear(places.state);
  for (int64_t block = unit.first_block; block < unit.first_block + unit.block_count; ++block) {
    kernel.attend_block(block, places.partial);
    kernel.merge(block, places.partial, places.state);
  }
  kernel.finish(places.state);
}

// Some blocks of a unit, each into its own partial.
void attend_piece(const AttendCall& call, const Layout& layout, const Unit& unit, int64_t first_block,
                  int64_t block_count, float* partials, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  kernel.load_queries();
  for (int64_t block = first_block; block < first_block + block_count; ++block)
    kernel.attend_block(
        block, layout.partial_at(partials + (unit.first_partial + block - unit.first_block) * layout.partial_floats));
}

// The partials of a unit's blocks, merged in order of position: the same steps as in attend_unit.
void merge_unit(const AttendCall& call, const Layout& layout, const Unit& unit, float* partials, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  kernel.clear(places.state);
  for (int64_t index = 0; index < unit.block_count; ++index)
    kernel.merge(unit.first_block + index,
                 layout.partial_at(partials + (unit.first_partial + index) * layout.partial_floats), places.state);
  kernel.finish(places.state);
}

}  // namespace
}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace regard::kernels {
namespace {
HWY_EXPORT(attend_unit);
HWY_EXPORT(attend_piece);
HWY_EXPORT(merge_unit);

// Cuts the call into units. Later tokens see more keys under causal masks, so they come first: the short units fill the
// end.
void plan_units(const AttendCall& call, const Layout& layout, AttendScratch& scratch) {
  const int64_t tokens_per_unit = layout.unit_rows / layout.group;
  scratch.units.clear();
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
        scratch.units.push_back({.span = &span,
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

// Cuts every unit's keys into pieces; false if the units are many enough, or have nothing to cut.
bool plan_pieces(AttendScratch& scratch, const Threads& threads) {
  scratch.pieces.clear();
  int64_t all_blocks = 0;
  for (const Unit& unit : scratch.units) all_blocks += unit.block_count;
  const auto units = static_cast<int64_t>(scratch.units.size());
  if (threads.count() == 1 || units >= kUnitsPerThread * threads.count() || all_blocks <= units) return false;
  const int64_t piece_blocks = std::max<int64_t>(1, all_blocks / (2 * kUnitsPerThread * threads.count()));
  int64_t partials = 0;
  for (int64_t index = 0; index < units; ++index) {
    Unit& unit = scratch.units[static_cast<size_t>(index)];
    unit.first_partial = partials;
    partials += unit.block_count;
    for (int64_t block = 0; block < unit.block_count; block += piece_blocks)
      scratch.pieces.push_back({.unit = index,
                                .first_block = unit.first_block + block,
                                .block_count = std::min(piece_blocks, unit.block_count - block)});
  }
  return true;
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
  const Layout layout(call.shape, longest_span);
  const auto floats = static_cast<size_t>(layout.thread_floats());
  scratch.reserve(threads.count(), floats);
  plan_units(call, layout, scratch);
  const auto units = static_cast<int64_t>(scratch.units.size());
  if (!plan_pieces(scratch, threads)) {
    threads.for_each(units, [&](int64_t index, int thread) {
      HWY_DYNAMIC_DISPATCH(attend_unit)
      (call, layout, scratch.units[static_cast<size_t>(index)], scratch.of_thread(thread, floats));
    });
    return;
  }
  const Unit& last = scratch.units.back();
  float* partials =
      scratch.shared(static_cast<size_t>((last.first_partial + last.block_count) * layout.partial_floats));
  threads.for_each(static_cast<int64_t>(scratch.pieces.size()), [&](int64_t index, int thread) {
    const AttendScratch::Piece& piece = scratch.pieces[static_cast<size_t>(index)];
    HWY_DYNAMIC_DISPATCH(attend_piece)
    (call, layout, scratch.units[static_cast<size_t>(piece.unit)], piece.first_block, piece.block_count, partials,
     scratch.of_thread(thread, floats));
  });
  threads.for_each(units, [&](int64_t index, int thread) {
    HWY_DYNAMIC_DISPATCH(merge_unit)
    (call, layout, scratch.units[static_cast<size_t>(index)], partials, scratch.of_thread(thread, floats));
  });
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
