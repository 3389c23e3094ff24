#include "kernels/attend.h"

#include <algorithm>

#include "kernels/attend_layout.h"
#include "kernels/attend_plan.h"
#include "kernels/bf16_products.h"

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

}  // namespace
}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace regard::kernels {
namespace {
HWY_EXPORT(attend_piece);
HWY_EXPORT(merge_unit);

// Whether both products of the call can be of bf16 pairs.
bool can_pair(const AttendCall& call) {
  return call.shape.head_dim % 2 == 0 && std::ranges::all_of(call.spans, [](const AttendSpan& span) {
           return span.kv.table == nullptr ||
                  (span.kv.keys.type == PanelType::bf16 && span.kv.values.type == PanelType::bf16);
         });
}

}  // namespace

void attend(const AttendCall& call, AttendScratch& scratch, const Threads& team, const WorkspaceOptions& options) {
  int64_t longest_span = 1;
  for (const AttendSpan& span : call.spans) longest_span = std::max(longest_span, span.count);
  AttendLayout layout(call.shape, longest_span, options.caches);
  layout.pairs = options.bf16_products && can_pair(call) && has_bf16_products();
  AttendWork& work = scratch.work;
  plan_units(call, layout, work.units);
  int64_t all_blocks = 0;
  for (const Unit& unit : work.units) all_blocks += unit.block_count;
  const Threads threads =
      team.for_work(all_blocks * kBlock * layout.unit_rows * (call.shape.head_dim + call.shape.v_head_dim));
  const auto floats = static_cast<size_t>(layout.thread_floats());
  scratch.reserve(team.count(), floats);
  const auto run_pieces = [&](float* partials) {
    const auto pieces = static_cast<int64_t>(work.pieces.size());
    threads.for_each(pieces, [&](int64_t index, int thread) {
      const int64_t later = index + threads.count();
      HWY_DYNAMIC_DISPATCH(attend_piece)
      (call, layout, work, work.pieces[static_cast<size_t>(index)],
       later < pieces ? &work.pieces[static_cast<size_t>(later)] : nullptr, partials,
       scratch.of_thread(thread, floats));
    });
  };
  if (!splits_units(work, all_blocks, threads)) {
    plan_whole_units(work);
    return run_pieces(nullptr);
  }
  const int64_t places = plan_partials(work, layout);
  float* partials = scratch.shared(static_cast<size_t>(places * layout.partial_floats));
  int64_t most_blocks = 0;
  for (const Unit& unit : work.units) most_blocks = std::max(most_blocks, unit.block_count);
  for (int64_t first = 0; first < most_blocks;) {
    const int64_t end = first + work.round_blocks + (first == 0 ? 1 : 0);
    plan_round(work, first, end, threads);
    run_pieces(partials);
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
