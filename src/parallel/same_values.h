#pragma once

#include <span>
#include <string>
#include <string_view>

#include "regard/communicator.h"

namespace regard {

// Throws Error, the same on all ranks, unless all ranks' values are equal; it names the ranks of each value.
void require_same(std::string_view what, std::span<const std::string> values);

// Gathers a checksum of the bytes, and throws like `require_same`. Collective.
void require_same_bytes(Communicator& group, std::string_view what, std::span<const std::byte> bytes);

}  // namespace regard
