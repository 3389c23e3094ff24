#include "kernels/attend.h"

#include <algorithm>

#include "kernels/attend_layout.h"
#include "kernels/attend_plan.h"
#include "kernels/bf16_products.h"

#ifndef REGARD_KERNELS_ATTEND_ONCE_
#define REGARD_KERNELS_ATTEND_ONCE_
namespace regard::kernels {

// Rows of all tokens.
inline int64_t rows_of(const AttendCall& call) {
  int64_t tokens = 0;
  for (const AttendSpan& span : call.spans) tokens = std::max(tokens, span.first_token + span.count);
  return tokens * call.shape.heads;
}

}  // namespace regard::kernels
#endif  // once

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attend.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because it is compiled once per target.
#include "kernels/unit_kernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace {

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
    if (whole) {
      kernel.attend_block(block, next, places.state, block == unit.first_block);
    } else {
      const int64_t place = work.partial_of(unit, block - unit.first_block);
      kernel.attend_block(block, next, layout.partial_at(partials + place * layout.partial_floats), true);
    }
  }
  if (whole) kernel.finish(places.state);
}

// The partials of a unit's blocks first..end-1, counted from its own first, merged in order of position into that of
// its first block: the same steps as for a whole unit. After the last one, the result.
void merge_unit(const AttendCall& call, const AttendLayout& layout, const AttendWork& work, const Unit& unit,
                int64_t first, int64_t end, float* partials, float* memory) {
  const bool done = first > 0 && first >= unit.block_count;
  if (done) return;
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  const auto partial = [&](int64_t index) {
    return layout.partial_at(partials + work.partial_of(unit, index) * layout.partial_floats);
  };
  for (int64_t index = std::max<int64_t>(1, first); index < std::min(end, unit.block_count); ++index)
    kernel.merge_into(partial(0), partial(index));
  if (end >= unit.block_count) kernel.finish(partial(0));
}

// A unit's rows in a set of partials, and as the kernels have them.
class UnitRows {
 public:
  UnitRows(const AttendCall& call, const AttendLayout& layout, const Unit& unit)
      : shape_(call.shape), layout_(layout), unit_(unit) {}

  void save(const Partial& from, float* set) const {
    for (int64_t row = 0; row < unit_.tokens * layout_.group; ++row) {
      float* to = set + place(row);
      to[0] = from.maximum[row];
      to[1] = from.sum[row];
      std::copy_n(from.weighted + row * layout_.value_width, shape_.v_head_dim, to + 2);
    }
  }
  void load(const float* set, const Partial& to) const {
    for (int64_t row = 0; row < unit_.tokens * layout_.group; ++row) {
      const float* from = set + place(row);
      to.maximum[row] = from[0];
      to.sum[row] = from[1];
      float* weighted = std::copy_n(from + 2, shape_.v_head_dim, to.weighted + row * layout_.value_width);
      std::fill(weighted, to.weighted + (row + 1) * layout_.value_width, 0.0F);
    }
  }

 private:
  [[nodiscard]] int64_t place(int64_t row) const {
    const int64_t token = unit_.first_token + row / layout_.group;
    const int64_t head = unit_.kv_head * layout_.group + row % layout_.group;
    return (token * shape_.heads + head) * partial_numbers(shape_);
  }

  const AttendShape& shape_;
  const AttendLayout& layout_;
  const Unit& unit_;
};

// The partials of a unit's blocks: each into the set of its block, or merged into the only set.
void save_unit(const AttendCall& call, const AttendLayout& layout, const AttendWork& work, const Unit& unit,
               int64_t sets, float* out, float* partials, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  const UnitRows rows(call, layout, unit);
  const int64_t set_floats = rows_of(call) * partial_numbers(call.shape);
  const auto partial = [&](int64_t index) {
    return layout.partial_at(partials + work.partial_of(unit, index) * layout.partial_floats);
  };
  for (int64_t index = 0; index < unit.block_count; ++index)
    if (sets > 1)
      rows.save(partial(index), out + (unit.first_block + index) * set_floats);
    else if (index > 0)
      kernel.merge_into(partial(0), partial(index));
  if (sets == 1 && unit.block_count > 0) rows.save(partial(0), out);
}

void finish_unit(const AttendCall& call, const AttendLayout& layout, const Unit& unit,
                 std::span<const float* const> sets, float* partial, float* memory) {
  const ThreadMemory places(memory, layout);
  const UnitKernel kernel(call, layout, unit, places);
  const UnitRows rows(call, layout, unit);
  const Partial next = layout.partial_at(partial);
  rows.load(sets.front(), places.state);
  for (const float* set : sets.subspan(1)) {
    rows.load(set, next);
    kernel.merge_into(places.state, next);
  }
  kernel.finish(places.state);
}

}  // namespace
}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace regard::kernels {
namespace {
HWY_EXPORT(attend_piece);
HWY_EXPORT(merge_unit);
HWY_EXPORT(save_unit);
HWY_EXPORT(finish_unit);

// Whether both products of the call can be of bf16 pairs.
bool can_pair(const AttendCall& call) {
  return call.shape.head_dim % 2 == 0 && std::ranges::all_of(call.spans, [](const AttendSpan& span) {
           return span.kv.table == nullptr ||
                  (span.kv.keys.type == PanelType::bf16 && span.kv.values.type == PanelType::bf16);
         });
}

AttendLayout layout_of(const AttendCall& call, const WorkspaceOptions& options) {
  int64_t longest_span = 1;
  for (const AttendSpan& span : call.spans) longest_span = std::max(longest_span, span.count);
  AttendLayout layout(call.shape, longest_span, options.caches);
  layout.pairs = options.bf16_products && can_pair(call) && has_bf16_products();
  return layout;
}

// The threads that the work of all blocks is worth.
Threads threads_for(const AttendCall& call, const AttendLayout& layout, const AttendWork& work, const Threads& team) {
  int64_t blocks = 0;
  for (const Unit& unit : work.units) blocks += unit.block_count;
  return team.for_work(blocks * kBlock * layout.unit_rows * (call.shape.head_dim + call.shape.v_head_dim));
}

// All pieces of the work; partials null: each is a whole unit.
void run_pieces(const AttendCall& call, const AttendLayout& layout, AttendScratch& scratch, const Threads& threads,
                float* partials) {
  const AttendWork& work = scratch.work;
  const auto floats = static_cast<size_t>(layout.thread_floats());
  const auto pieces = static_cast<int64_t>(work.pieces.size());
  threads.for_each(pieces, [&](int64_t index, int thread) {
    const int64_t later = index + threads.count();
    HWY_DYNAMIC_DISPATCH(attend_piece)
    (call, layout, work, work.pieces[static_cast<size_t>(index)],
     later < pieces ? &work.pieces[static_cast<size_t>(later)] : nullptr, partials, scratch.of_thread(thread, floats));
  });
}

}  // namespace

void attend_partials(const AttendCall& call, int64_t sets, float* partials, AttendScratch& scratch, const Threads& team,
                     const WorkspaceOptions& options) {
  const AttendLayout layout = layout_of(call, options);
  AttendWork& work = scratch.work;
  plan_units(call, layout, work.units);
  const Threads threads = threads_for(call, layout, work, team);
  const auto floats = static_cast<size_t>(layout.thread_floats());
  scratch.reserve(team.count(), floats);
  work.round_blocks = 1;
  for (const Unit& unit : work.units) work.round_blocks = std::max(work.round_blocks, unit.block_count);
  int64_t places = 0;
  for (Unit& unit : work.units) {
    unit.first_partial = places;
    places += unit.block_count;
  }
  float* by_block = scratch.shared(static_cast<size_t>(std::max<int64_t>(1, places) * layout.partial_floats));
  plan_round(work, 0, work.round_blocks, threads);
  run_pieces(call, layout, scratch, threads, by_block);
  const int64_t numbers = partial_numbers(call.shape);
  for (int64_t row = 0; row < sets * rows_of(call); ++row) {
    std::fill_n(partials + row * numbers, numbers, 0.0F);
    partials[row * numbers] = kMinusInfinity;  // no keys
  }
  threads.for_each(static_cast<int64_t>(work.units.size()), [&](int64_t index, int thread) {
    HWY_DYNAMIC_DISPATCH(save_unit)
    (call, layout, work, work.units[static_cast<size_t>(index)], sets, partials, by_block,
     scratch.of_thread(thread, floats));
  });
}

void finish_partials(const AttendCall& call, std::span<const float* const> sets, AttendScratch& scratch,
                     const Threads& team, const WorkspaceOptions& options) {
  AttendLayout layout = layout_of(call, options);
  AttendWork& work = scratch.work;
  plan_units(call, layout, work.units);
  const auto floats = static_cast<size_t>(layout.thread_floats());
  scratch.reserve(team.count(), floats);
  const auto units = static_cast<int64_t>(work.units.size());
  float* partials = scratch.shared(static_cast<size_t>(team.count() * layout.partial_floats));
  team.for_work(static_cast<int64_t>(sets.size()) * rows_of(call) * call.shape.v_head_dim)
      .for_each(units, [&](int64_t index, int thread) {
        HWY_DYNAMIC_DISPATCH(finish_unit)
        (call, layout, work.units[static_cast<size_t>(index)], sets, partials + thread * layout.partial_floats,
         scratch.of_thread(thread, floats));
      });
}

void attend(const AttendCall& call, AttendScratch& scratch, const Threads& team, const WorkspaceOptions& options) {
  const AttendLayout layout = layout_of(call, options);
  AttendWork& work = scratch.work;
  plan_units(call, layout, work.units);
  int64_t all_blocks = 0;
  for (const Unit& unit : work.units) all_blocks += unit.block_count;
  const Threads threads = threads_for(call, layout, work, team);
  const auto floats = static_cast<size_t>(layout.thread_floats());
  scratch.reserve(team.count(), floats);
  if (!splits_units(work, all_blocks, threads)) {
    plan_whole_units(work);
    return run_pieces(call, layout, scratch, threads, nullptr);
  }
  const int64_t places = plan_partials(work, layout);
  float* partials = scratch.shared(static_cast<size_t>(places * layout.partial_floats));
  int64_t most_blocks = 0;
  for (const Unit& unit : work.units) most_blocks = std::max(most_blocks, unit.block_count);
  for (int64_t first = 0; first < most_blocks;) {
    const int64_t end = first + work.round_blocks + (first == 0 ? 1 : 0);
    plan_round(work, first, end, threads);
    run_pieces(call, layout, scratch, threads, partials);
    threads.for_each(static_cast<int64_t>(work.units.size()), [&](int64_t index, int thread) {
      HWY_DYNAMIC_DISPATCH(merge_unit)
      (call, layout, work, work.units[static_cast<size_t>(index)], first, end, partials,
       scratch.of_thread(thread, floats));
    });
    first = end;
  }
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
