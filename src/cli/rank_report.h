#pragma once

#include <string>

#include "regard/communicator.h"

namespace regard::cli {

// A line for each host: its ranks, their processor, instruction set, threads each and the cores that they may run on;
// several lines where ranks of a host differ in these. The same on all ranks. Collective.
[[nodiscard]] std::string describe_ranks(Communicator& world, int threads);

}  // namespace regard::cli
