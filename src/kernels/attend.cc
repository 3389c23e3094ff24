#include "kernels/attend.h"

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

// The keys of one block that a unit needs, as at most kBlock / kTile segments.
struct BlockKeys {
  Segment segments[kBlock / kTile];
  int count = 0;
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

  // Attention of all rows over one block of keys. Rows that see none of them get an empty partial.
  void attend_block(int64_t block, const Partial& partial) const {
    const KeyRange needed = find_seen(block);
    std::fill_n(partial.maximum, layout_.row_floats, kMinusInfinity);
    std::fill_n(partial.sum, layout_.row_floats, 0.0F);
    if (needed.empty()) return;
    const BlockKeys keys = find_keys(block, needed);
    score(keys);
    for (int64_t row = 0; row < rows_; ++row)
      if (!memory_.seen[row].empty())
        weigh(memory_.scores + row * kBlock, memory_.seen[row], scale_, partial.maximum[row], partial.sum[row]);
    add_values(keys, partial.weighted);
  }

  void clear_state() const { clear(memory_.state, layout_.unit_rows, layout_.value_width); }
  void merge_into_state(const Partial& partial) const {
    merge(partial, memory_.state, rows_, layout_.value_width, scale_.factor, memory_.factors);
  }

  // The last step, and the only one that knows the sinks [MATH-6].
  void finish() const {
    const Partial& state = memory_.state;
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
      const float factor = ours / sum;
      float* HWY_RESTRICT weighted = state.weighted + row * layout_.value_width;
      for (int64_t i = 0; i < shape_.v_head_dim; ++i) weighted[i] *= factor;
      store_row(weighted, shape_.v_head_dim, call_.dtype, out);
      write_lse(token, head, maximum, sum);
    }
  }

 private:
  // 2^x for x <= 0; 0 where that is no normal number, as everywhere.
  static float power(double x) {
    constexpr double kSmallest = -126.0;
    return x == 0.0 ? 1.0F : x < kSmallest ? 0.0F : static_cast<float>(std::exp2(x));
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

  [[nodiscard]] BlockKeys find_keys(int64_t block, KeyRange needed) const {
    const KvPages& kv = unit_.span->kv;
    BlockKeys found;
    float* key_memory = memory_.keys;
    float* value_memory = memory_.values;
    const int64_t start = block * kBlock;
    const int64_t end = start + round_up(needed.last + 1, kTile);
    for (int64_t position = start + needed.first / kTile * kTile; position < end;) {
      const int64_t page = position / kv.page_tokens;
      const int64_t offset = position % kv.page_tokens;
      const int64_t count = std::min(end, (page + 1) * kv.page_tokens) - position;
      Segment& segment = found.segments[found.count++];
      segment.first = static_cast<int32_t>(position - start);
      segment.count = static_cast<int32_t>(count);
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

  [[nodiscard]] static int64_t row_tile(PanelType type) { return type == PanelType::f32 ? kMaxRows : kFusedRows; }

  // scores[row][key] = q . k for every key that some row of the row's tile sees.
  void score(const BlockKeys& found) const {
    // Keys at a time: their panel stays in the L1 cache while all rows pass by.
    constexpr int32_t kKeys = 4 * kTile;
    for (int s = 0; s < found.count; ++s) {
      const Segment& segment = found.segments[s];
      const int64_t step = row_tile(segment.keys.type);
      for (int32_t first = 0; first < segment.count; first += kKeys) {
        const KeyRange part = segment.range().intersect({segment.first + first, segment.first + first + kKeys - 1});
        for (int64_t row = 0; row < rows_; row += step) score_tile(segment, part, row, std::min(step, rows_ - row));
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
    const int64_t step = row_tile(found.segments[0].values.type);
    // Value tiles at a time: 64 KB of f32, shared by all rows.
    constexpr int64_t kValueTiles = 4;
    for (int64_t tile = 0; tile < tiles(shape_.v_head_dim); tile += kValueTiles) {
      const int64_t tile_count = std::min(kValueTiles, tiles(shape_.v_head_dim) - tile);
      for (int64_t row = 0; row < rows_;) {
        if (memory_.seen[row].empty()) {
          ++row;
          continue;
        }
        int64_t count = 1;
        while (count < step && row + count < rows_ && !memory_.seen[row + count].empty()) ++count;
        add_row_tile(found, row, count, tile, tile_count, weighted);
        row += count;
      }
    }
  }

  // Keys that all rows of the tile see go through the wide kernel; the ragged ends before and after, token by token.
  void add_row_tile(const BlockKeys& found, int64_t row, int64_t count, int64_t tile, int64_t tile_count,
                    float* weighted) const {
    KeyRange common{0, kBlock - 1};
    KeyRange all;
    for (int64_t r = row; r < row + count; ++r) {
      common = common.intersect(memory_.seen[r]);
      all = all.unite(memory_.seen[r]);
    }
    const auto add = [&](int64_t r, int64_t n, KeyRange part, Sum mode) {
      add_keys(found, r, n, part, tile, tile_count, mode, weighted);
    };
    // Rows of one token see the same keys and go together.
    const auto for_each_run = [&](auto&& visit) {
      for (int64_t r = row; r < row + count;) {
        int64_t n = 1;
        while (r + n < row + count && (r + n) % layout_.group != 0) ++n;
        visit(r, n, memory_.seen[r]);
        r += n;
      }
    };
    if (common.empty()) {
      for_each_run([&](int64_t r, int64_t n, KeyRange seen) { add(r, n, seen, Sum::start); });
      return;
    }
    const bool ragged_start = all.first < common.first;
    if (ragged_start)
      for_each_run([&](int64_t r, int64_t n, KeyRange seen) { add(r, n, {seen.first, common.first - 1}, Sum::start); });
    add(row, count, common, ragged_start ? Sum::resume : Sum::start);
    if (all.last > common.last)
      for_each_run([&](int64_t r, int64_t n, KeyRange seen) {
        if (seen.last > common.last) add(r, n, {common.last + 1, seen.last}, Sum::resume);
      });
  }

  // One chain over the keys of `part`, which may be empty: then Sum::start leaves zeros.
  void add_keys(const BlockKeys& found, int64_t row, int64_t count, KeyRange part, int64_t tile, int64_t tile_count,
                Sum mode, float* weighted) const {
    float* out = weighted + row * layout_.value_width + tile * kTile;
    if (part.empty()) {
      for (int64_t r = 0; r < count; ++r) std::fill_n(out + r * layout_.value_width, tile_count * kTile, 0.0F);
      return;
    }
    for (int s = 0; s < found.count; ++s) {
      const Segment& segment = found.segments[s];
      const KeyRange own = part.intersect(segment.range());
      if (own.empty()) continue;
      multiply(memory_.scores + row * kBlock + own.first, count, segment.values.from(tile, own.first - segment.first),
               tile_count, own.size(), mode, out, static_cast<size_t>(layout_.value_width));
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

// A whole unit, its blocks merged as they come.
void attend_unit(const AttendCall& call, const AttendLayout& layout, const Unit& unit, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  kernel.load_queries();
  kernel.clear_state();
  for (int64_t block = unit.first_block; block < unit.first_block + unit.block_count; ++block) {
    kernel.attend_block(block, places.partial);
    kernel.merge_into_state(places.partial);
  }
  kernel.finish();
}

// Some blocks of a unit, each into its own partial.
void attend_piece(const AttendCall& call, const AttendLayout& layout, const Unit& unit, int64_t first_block,
                  int64_t block_count, float* partials, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  kernel.load_queries();
  for (int64_t block = first_block; block < first_block + block_count; ++block)
    kernel.attend_block(
        block, layout.partial_at(partials + (unit.first_partial + block - unit.first_block) * layout.partial_floats));
}

// The partials of a unit's blocks, merged in order of position: the same steps as in attend_unit.
void merge_unit(const AttendCall& call, const AttendLayout& layout, const Unit& unit, float* partials, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  kernel.clear_state();
  for (int64_t index = 0; index < unit.block_count; ++index)
    kernel.merge_into_state(layout.partial_at(partials + (unit.first_partial + index) * layout.partial_floats));
  kernel.finish();
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
void plan_units(const AttendCall& call, const AttendLayout& layout, AttendScratch& scratch) {
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
  const AttendLayout layout(call.shape, longest_span);
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
