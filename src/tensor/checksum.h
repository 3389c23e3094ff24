#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace regard {

// Tells damaged bytes from those that were written; no protection against somebody who means to deceive. Words of 8
// bytes are multiplied in, in four lanes, so that it is as fast as memory. Part of a file format: it must not change.
[[nodiscard]] uint64_t checksum(std::span<const std::byte> bytes);

}  // namespace regard
