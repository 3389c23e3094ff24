#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace regard {

// Bytes that this process can still use: what the machine has available or, where that is less, what the memory limits
// of its control groups (cgroup v1 and v2, as containers and batch systems set them) leave. Pages of files that a group
// can drop count as free. Nothing where the system does not tell. `root`: the folder that holds proc and sys.
[[nodiscard]] std::optional<int64_t> available_memory_bytes(const std::filesystem::path& root = "/");

}  // namespace regard
