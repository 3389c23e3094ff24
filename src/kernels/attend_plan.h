#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attend.h"
#include "kernels/attend_layout.h"

// How a call is cut into work for threads, the same for every target.
namespace regard::kernels {

// Cuts the call into units. Later tokens see more keys under causal masks, so they come first: the short units fill the
// end.
void plan_units(const AttendCall& call, const AttendLayout& layout, std::vector<Unit>& units);

// Whether the units are too few to keep all threads at work: then they are cut along the keys.
[[nodiscard]] bool splits_units(const AttendWork& work, int64_t all_blocks, const Threads& threads);

// One piece a unit.
void plan_whole_units(AttendWork& work);

// How many blocks of each unit a round takes, and where their partials go; returns the places. Partials of all blocks
// at once would take memory that grows with the sequence.
[[nodiscard]] int64_t plan_partials(AttendWork& work, const AttendLayout& layout);

// Pieces of the blocks first..end-1 of every unit, counted from its own first.
void plan_round(AttendWork& work, int64_t first, int64_t end, const Threads& threads);

}  // namespace regard::kernels
