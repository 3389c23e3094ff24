#pragma once

#include <cstddef>
#include <span>

#include "regard/communicator.h"

namespace regard {

// What every exchange begins with, however bytes travel: copies what the rank has for itself. Throws Error unless there
// is one part to send and one to receive for each rank of the group, and the rank's own two are of one size.
void copy_own_part(const Communicator& group, std::span<const std::span<const std::byte>> send,
                   std::span<const std::span<std::byte>> receive);

}  // namespace regard
