#include "kernels/attend_plan.h"

#include <algorithm>
#include <limits>

namespace regard::kernels {
namespace {

// Fewer units than this many per thread would leave threads idle at the end.
constexpr int64_t kUnitsPerThread = 4;

}  // namespace

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

bool splits_units(const AttendWork& work, int64_t all_blocks, const Threads& threads) {
  const auto units = static_cast<int64_t>(work.units.size());
  return threads.count() > 1 && units < kUnitsPerThread * threads.count() && all_blocks > units;
}

void plan_whole_units(AttendWork& work) {
  work.pieces.clear();
  for (size_t index = 0; index < work.units.size(); ++index)
    work.pieces.push_back(
        {.unit = index, .first_block = work.units[index].first_block, .block_count = work.units[index].block_count});
}

int64_t plan_partials(AttendWork& work, const AttendLayout& layout) {
  constexpr int64_t kMostFloats = int64_t{1} << 21;  // 8 MB
  work.round_blocks =
      std::max<int64_t>(1, kMostFloats / layout.partial_floats / static_cast<int64_t>(work.units.size()) - 1);
  int64_t places = 0;
  for (Unit& unit : work.units) {
    unit.first_partial = places;
    places += std::min(unit.block_count, work.round_blocks + 1);
  }
  return places;
}

void plan_round(AttendWork& work, int64_t first, int64_t end, const Threads& threads) {
  int64_t blocks_of_round = 0;
  for (const Unit& unit : work.units) blocks_of_round += std::max<int64_t>(0, std::min(end, unit.block_count) - first);
  const int64_t most = std::max<int64_t>(1, blocks_of_round / (2 * kUnitsPerThread * threads.count()));
  work.pieces.clear();
  for (size_t index = 0; index < work.units.size(); ++index) {
    const Unit& unit = work.units[index];
    for (int64_t block = first; block < std::min(end, unit.block_count); block += most)
      work.pieces.push_back({.unit = index,
                             .first_block = unit.first_block + block,
                             .block_count = std::min(most, std::min(end, unit.block_count) - block)});
  }
}

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

}  // namespace regard::kernels
