// Attention of one unit: rows of one sequence against one KV head.

#if defined(REGARD_KERNELS_UNIT_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef REGARD_KERNELS_UNIT_KERNEL_INL_H_
#undef REGARD_KERNELS_UNIT_KERNEL_INL_H_
#else
#define REGARD_KERNELS_UNIT_KERNEL_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/attend_layout.h"
#include "kernels/bf16_products.h"
#include "kernels/block_keys-inl.h"
#include "kernels/convert-inl.h"
#include "kernels/partial-inl.h"
#include "kernels/weigh-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {

// Tiles of keys or values that go through the kernel at once. Where several row tiles pass by them, one of these
// fetches what comes next at their place.
constexpr int64_t kTilesAtOnce = 4;

// Rows of a unit that pass by the keys together.
struct RowTile {
  int64_t row;
  int64_t rows;
  int64_t index;
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
        finder_(call.shape, unit, memory),
        scale_(call.shape.scale, call.shape.soft_cap),
        rows_(unit.tokens * layout.group) {}

  void load_queries() const {
    if (layout_.pairs) return load_bf16_queries();
    for (int64_t block = 0; block < blocks(shape_.head_dim); ++block) {
      const int64_t count = std::min(kBlock, shape_.head_dim - block * kBlock);
      for (int64_t row = 0; row < rows_; ++row) {
        float* to = memory_.queries + (block * rows_ + row) * kBlock;
        load_row(query(unit_, row) + block * kBlock * element_bytes(), call_.dtype, count, to);
        if (const float* factors = factors_of(unit_.span->kv.keys, shape_.head_dim); factors != nullptr)
          for (int64_t i = 0; i < count; ++i) to[i] *= factors[block * kBlock + i];
      }
    }
  }

  void load_bf16_queries() const {
    for (int64_t block = 0; block < blocks(shape_.head_dim); ++block) {
      const int64_t count = std::min(kBlock, shape_.head_dim - block * kBlock);
      for (int64_t row = 0; row < rows_; ++row) {
        float* wide = memory_.scores;
        load_row(query(unit_, row) + block * kBlock * element_bytes(), call_.dtype, count, wide);
        store_row(wide, count, DType::bf16, reinterpret_cast<std::byte*>(bf16_queries(block, row)));
      }
    }
  }

  // Attention of all rows over one block of keys: into `into` where that is the partial of this block alone, else
  // merged into it. Meanwhile the keys and values of `next` are fetched. Tile by tile of rows, so that a tile's scores
  // never leave the L1 cache.
  void attend_block(int64_t block, const BlockOfUnit& next, const Partial& into, bool alone) const {
    const KeyRange needed = find_seen(block);
    if (needed.empty()) {
      if (alone) clear(into, 0, rows_);
      return;
    }
    const int64_t tail_start =
        unit_.span->tails == nullptr ? std::numeric_limits<int64_t>::max() : unit_.span->tail_start;
    if (block * kBlock + needed.last < tail_start) {
      BlockKeys keys = finder_.find(block, next, needed, 0);
      if (decodes()) finder_.decode(keys);
      attend_rows(keys, 0, rows_, next, into, alone);
      return;
    }
    for (int64_t token = 0; token < unit_.tokens; ++token) {
      const int64_t row = token * layout_.group;
      if (!memory_.seen[row].empty())
        attend_rows(finder_.find(block, {}, memory_.seen[row], token), row, row + layout_.group, {}, into, alone);
      else if (alone)
        clear(into, row, layout_.group);
    }
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
      float* weighted = state.weighted + row * layout_.value_width;
      if (const float* factors = factors_of(unit_.span->kv.values, shape_.v_head_dim); factors != nullptr)
        for (int64_t i = 0; i < layout_.value_width; ++i) weighted[i] *= factors[i];
      store_scaled(weighted, ours / sum, out);
      write_lse(token, head, maximum, sum);
    }
  }

 private:
  // Rows first..end-1 of attend_block; all see these keys.
  void attend_rows(const BlockKeys& keys, int64_t first, int64_t end, const BlockOfUnit& next, const Partial& into,
                   bool alone) const {
    int64_t index = 0;
    for (int64_t row = first; row < end; ++index) {
      const RowTile tile{.row = row, .rows = rows_from(row, end), .index = index};
      if (next.unit != nullptr && next.unit != &unit_) fetch_queries(*next.unit, tile);
      if (alone) {
        attend_tile(keys, tile, layout_.rows_of(into, row));
      } else {
        attend_tile(keys, tile, memory_.partial);
        merge(memory_.partial, layout_.rows_of(into, row), tile.rows, layout_.value_width, scale_.factor,
              memory_.factors);
      }
      row += tile.rows;
    }
  }

  // 2^x for x <= 0; 0 where that is no normal number, as everywhere. The whole part leaves in double: what it would
  // cost the rest in f32 would show in an output that a sink keeps small.
  static float power(double x) {
    constexpr double kSmallest = -126.0;
    if (std::isnan(x)) return static_cast<float>(x);
    if (x < kSmallest) return 0.0F;
    const double whole = std::nearbyint(x);
    const float fraction = hn::GetLane(exp2_nonpositive(F32(), hn::Set(F32(), static_cast<float>(x - whole))));
    return fraction * std::bit_cast<float>((static_cast<int32_t>(whole) + 127) << 23);
  }

  // weighted * factor, as the output's type.
  void store_scaled(float* HWY_RESTRICT weighted, float factor, std::byte* out) const {
    const bool direct = call_.dtype == DType::f32 && shape_.v_head_dim == layout_.value_width;
    float* HWY_RESTRICT to = direct ? reinterpret_cast<float*>(out) : weighted;
    for (int64_t i = 0; i < layout_.value_width; i += static_cast<int64_t>(kLanes))
      hn::StoreU(hn::Mul(hn::LoadU(F32(), weighted + i), hn::Set(F32(), factor)), F32(), to + i);
    if (!direct) store_row(weighted, shape_.v_head_dim, call_.dtype, out);
  }

  void write_lse(int64_t token, int64_t head, double exponent, float sum) const {
    if (call_.lse == nullptr) return;
    constexpr double kLn2 = 0.693147180559945309;
    call_.lse[token * shape_.heads + head] =
        sum == 0.0F ? kMinusInfinity : static_cast<float>((exponent + std::log2(static_cast<double>(sum))) * kLn2);
  }

  // What each element of the unit's KV head is multiplied by: of keys, queries take it over; of values, the result.
  [[nodiscard]] const float* factors_of(const KvPanels& side, int64_t width) const {
    return side.factors == nullptr ? nullptr : side.factors + unit_.kv_head * round_up(width, kTile);
  }

  [[nodiscard]] int64_t head_of(int64_t row) const { return unit_.kv_head * layout_.group + row % layout_.group; }
  [[nodiscard]] int64_t element_bytes() const { return static_cast<int64_t>(size_of(call_.dtype)); }
  [[nodiscard]] const std::byte* query(const Unit& unit, int64_t row) const {
    const int64_t head = unit.kv_head * layout_.group + row % layout_.group;
    const int64_t index = (unit.first_token + row / layout_.group) * shape_.heads + head;
    return call_.queries + index * shape_.head_dim * element_bytes();
  }
  // Whether keys are read by so many rows that decoding them once is cheaper than at each use.
  [[nodiscard]] bool decodes() const { return rows_ > kMostFused && !layout_.pairs; }
  [[nodiscard]] uint16_t* bf16_queries(int64_t block, int64_t row) const {
    return reinterpret_cast<uint16_t*>(memory_.queries) + (block * rows_ + row) * kBlock;
  }

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

  // A share of the queries that this thread will load next, tile by tile: all at once would fill the queue to memory.
  void fetch_queries(const Unit& unit, const RowTile& tile) const {
    const int64_t bytes = shape_.head_dim * element_bytes();
    for (int64_t row = tile.row; row < std::min(tile.row + tile.rows, unit.tokens * layout_.group); ++row)
      for (int64_t byte = 0; byte < bytes; byte += 64) prefetch(query(unit, row) + byte);
  }

  // The partial of no keys at all.
  void clear(const Partial& partial, int64_t first, int64_t count) const {
    std::fill_n(partial.maximum + first, count, kMinusInfinity);
    std::fill_n(partial.sum + first, count, 0.0F);
    std::fill_n(partial.weighted + first * layout_.value_width, count * layout_.value_width, 0.0F);
  }

  // Rows that go through the kernel together. They hold whole tokens, or part of one: rows of one token see the same
  // keys, and of several tokens not, which leaves ragged ends.
  [[nodiscard]] int64_t rows_from(int64_t row, int64_t end) const {
    constexpr int64_t kMost = kMaxRows;
    const int64_t group = layout_.group;
    if (group <= kMost) return std::min(kMost / group * group, end - row);
    const int64_t parts = (group + kMost - 1) / kMost;
    return std::min((group + parts - 1) / parts, group - row % group);
  }

  [[nodiscard]] bool alone(const RowTile& tile) const { return tile.rows == rows_; }
  // All rows pass by the same panels: one tile of rows fetches what comes next, the `part`-th part by another tile.
  [[nodiscard]] bool fetches(const RowTile& tile, int64_t part) const {
    const int64_t tile_count = rows_ / tile.rows;
    return tile.index == part % std::max<int64_t>(1, tile_count);
  }

  // The tile's partial over these keys. `partial` is the tile's own: its rows count from 0.
  void attend_tile(const BlockKeys& keys, const RowTile& tile, const Partial& partial) const {
    const KeyRange* seen = memory_.seen + tile.row;
    std::fill_n(partial.maximum, AttendLayout::kMostRows, kMinusInfinity);
    std::fill_n(partial.sum, AttendLayout::kMostRows, 0.0F);
    score(keys, tile);
    for (int64_t row = 0; row < tile.rows; ++row) {
      if (seen[row].empty())
        clear(partial, row, 1);
      else
        weigh(memory_.scores + row * kBlock, seen[row], scale_, keys.key_scales, keys.value_scales,
              partial.maximum[row], partial.sum[row]);
    }
    if (layout_.pairs)
      store_row(memory_.scores, tile.rows * kBlock, DType::bf16, reinterpret_cast<std::byte*>(memory_.bf16_weights));
    add_values(keys, tile, partial.weighted);
  }

  // scores[row][key] = q . k for every key that some row of the tile sees, as many keys at a time as the kernel takes
  // tiles.
  void score(const BlockKeys& keys, const RowTile& tile) const {
    KeyRange all;
    for (int64_t row = tile.row; row < tile.row + tile.rows; ++row) all = all.unite(memory_.seen[row]);
    const int64_t end = tiles(all.last + 1);
    const KeyRun* run = keys.keys.begin();
    for (int64_t first = all.first / kTile; first < end;) {
      while (first * kTile >= run->first + run->count) ++run;
      const int64_t here = std::min<int64_t>((run->first + run->count) / kTile, end) - first;
      const bool fetching = fetches(tile, first / kTilesAtOnce);
      const PanelView low = keys_from(*run, first, fetching);
      float* out = memory_.scores + first * kTile;
      const bool splits = here == 2 && first + kTilesAtOnce <= end && run[1].count >= 2 * kTile && !layout_.pairs;
      if (splits) {
        score_split_keys(low, keys_from(run[1], first + 2, fetching), tile, out);
        first += kTilesAtOnce;
      } else {
        const int64_t whole = here / kTilesAtOnce * kTilesAtOnce;
        const int64_t count = whole == 0 ? here : alone(tile) ? whole : kTilesAtOnce;
        score_keys(low, count, tile, out);
        first += count;
      }
    }
  }

  // A run's keys from a tile of the block on.
  [[nodiscard]] static PanelView keys_from(const KeyRun& run, int64_t tile, bool fetching) {
    PanelView panel = run.panel.from(tile - run.first / kTile, 0);
    if (!fetching) panel.ahead = 0;
    return panel;
  }

  void score_keys(const PanelView& keys, int64_t tile_count, const RowTile& tile, float* out) const {
    if (layout_.pairs) {
      for (int64_t block = 0; block < blocks(shape_.head_dim); ++block)
        multiply_bf16({bf16_queries(block, tile.row), tile.rows}, keys.from(0, block * kBlock), tile_count, 0,
                      std::min(kBlock, shape_.head_dim - block * kBlock) - 1, block == 0 ? Sum::start : Sum::add, out,
                      kBlock);
      return;
    }
    for (int64_t k = 0; k < shape_.head_dim; k += kBlock)
      multiply<CacheKernels>(queries_from(tile, k), tile.rows, keys.from(0, k), tile_count,
                             std::min(kBlock, shape_.head_dim - k), kScoreChain, k == 0 ? Sum::start : Sum::add, out,
                             kBlock);
  }

  void score_split_keys(const PanelView& low, const PanelView& high, const RowTile& tile, float* out) const {
    for (int64_t k = 0; k < shape_.head_dim; k += kBlock)
      multiply_split(queries_from(tile, k), tile.rows, low.from(0, k), high.from(0, k),
                     std::min(kBlock, shape_.head_dim - k), kScoreChain, k == 0 ? Sum::start : Sum::add, out, kBlock);
  }

  [[nodiscard]] const float* queries_from(const RowTile& tile, int64_t k) const {
    return memory_.queries + (k * rows_ + tile.row * kBlock);
  }

  // weighted[row] = sum over the row's visible keys of weight * value, in order of position. Only visible keys are
  // touched: what a masked slot holds, even NaN, changes nothing.
  void add_values(const BlockKeys& keys, const RowTile& tile, float* weighted) const {
    // A row tile alone takes a page's values from end to end, which is how memory likes to be read. Several share what
    // is to be fetched.
    const int64_t all = tiles(shape_.v_head_dim);
    const int64_t at_once = alone(tile) ? all : kTilesAtOnce;
    for (int64_t first = 0; first < all; first += at_once) {
      const int64_t tile_count = std::min(at_once, all - first);
      const bool fetching = fetches(tile, first / at_once);
      for (int64_t row = 0; row < tile.rows;) {
        int64_t count = 0;
        while (row + count < tile.rows && !memory_.seen[tile.row + row + count].empty()) ++count;
        if (count > 0) add_row_tile(keys, tile, {row, count, first, tile_count, fetching}, weighted);
        row += std::max<int64_t>(1, count);
      }
    }
  }

  // Rows of a row tile times value tiles.
  struct ValueTile {
    int64_t row;
    int64_t rows;
    int64_t tile;
    int64_t tiles;
    bool fetching;  // what comes next

    [[nodiscard]] ValueTile of_rows(int64_t first, int64_t count) const { return {first, count, tile, tiles, false}; }
  };

  // Keys that all rows of the tile see go through the wide kernel; the ragged ends before and after, token by token.
  void add_row_tile(const BlockKeys& keys, const RowTile& tile, const ValueTile& all_rows, float* weighted) const {
    const KeyRange* seen = memory_.seen + tile.row;
    KeyRange common{0, kBlock - 1};
    KeyRange all;
    const int64_t end = all_rows.row + all_rows.rows;
    for (int64_t r = all_rows.row; r < end; ++r) {
      common = common.intersect(seen[r]);
      all = all.unite(seen[r]);
    }
    if (layout_.pairs) common = whole_pairs(common, all);
    // Rows of one token see the same keys and go together.
    const auto for_each_token = [&](auto&& visit) {
      for (int64_t r = all_rows.row; r < end;) {
        const int64_t n = std::min(layout_.group - (tile.row + r) % layout_.group, end - r);
        visit(all_rows.of_rows(r, n), seen[r]);
        r += n;
      }
    };
    if (common.empty()) {
      for_each_token([&](const ValueTile& rows, KeyRange own) { add_keys(keys, rows, own, Sum::start, weighted); });
      return;
    }
    const bool ragged_start = all.first < common.first;
    if (ragged_start)
      for_each_token([&](const ValueTile& rows, KeyRange own) {
        add_keys(keys, rows, {own.first, common.first - 1}, Sum::start, weighted);
      });
    add_keys(keys, all_rows, common, ragged_start ? Sum::resume : Sum::start, weighted);
    if (all.last > common.last)
      for_each_token([&](const ValueTile& rows, KeyRange own) {
        if (own.last > common.last) add_keys(keys, rows, {common.last + 1, own.last}, Sum::resume, weighted);
      });
  }

  // Pairs of keys are added at once: a ragged end must not cut one.
  [[nodiscard]] static KeyRange whole_pairs(KeyRange common, KeyRange all) {
    if (all.first < common.first) common.first += common.first % 2;
    if (all.last > common.last) common.last -= 1 - common.last % 2;
    return common;
  }

  // One chain over the keys of `part`, which may be empty: then Sum::start leaves zeros.
  void add_keys(const BlockKeys& keys, const ValueTile& at, KeyRange part, Sum mode, float* weighted) const {
    float* out = weighted + at.row * layout_.value_width + at.tile * kTile;
    if (part.empty()) {
      for (int64_t r = 0; r < at.rows; ++r) std::fill_n(out + r * layout_.value_width, at.tiles * kTile, 0.0F);
      return;
    }
    for (const KeyRun& run : keys.values) {
      const KeyRange own = part.intersect(run.range());
      if (own.empty()) continue;
      PanelView values = run.panel.from(at.tile, 0);
      if (!at.fetching) values.ahead = 0;
      if (layout_.pairs)
        multiply_bf16({memory_.bf16_weights + at.row * kBlock + run.first, at.rows}, values, at.tiles,
                      own.first - run.first, own.last - run.first, mode, out, layout_.value_width);
      else
        multiply<CacheKernels>(memory_.scores + at.row * kBlock + own.first, at.rows,
                               values.from(0, own.first - run.first), at.tiles, own.size(), kOneChain, mode, out,
                               static_cast<size_t>(layout_.value_width));
      mode = Sum::resume;
    }
  }

  const AttendCall& call_;
  const AttendShape& shape_;
  const AttendLayout& layout_;
  const Unit& unit_;
  const ThreadMemory& memory_;
  KeyFinder finder_;
  ScoreScale scale_;
  int64_t rows_;
};

}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
