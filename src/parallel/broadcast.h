#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "regard/communicator.h"

namespace regard {

// Gives all ranks the bytes of the first one; all have as many. Collective.
void broadcast(Communicator& group, std::span<std::byte> bytes);

// What the first rank passes, whatever the others do. Collective.
[[nodiscard]] std::string from_first(Communicator& group, std::string text);

}  // namespace regard
