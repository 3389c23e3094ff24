#include "tensor/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

namespace regard {
namespace {

namespace fs = std::filesystem;

// The number after a name in a file of "name number" lines.
std::optional<int64_t> number_of(const fs::path& path, std::string_view wanted) {
  std::ifstream file(path);
  std::string name;
  int64_t number = 0;
  while (file >> name >> number) {
    if (name == wanted) return number;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return {};
}

std::optional<int64_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  int64_t number = 0;
  if (file >> number) return number;
  return {};  // "max", or no such file
}

// The names of a group's files in a version of cgroup.
struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* droppable;  // in memory.stat
};
constexpr GroupFiles kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
constexpr GroupFiles kVersion2 = {"memory.max", "memory.current", "inactive_file"};

// What the limits of a group and of those around it leave, up to the hierarchy's top.
int64_t left_by_groups(const fs::path& top, const fs::path& group, const GroupFiles& files) {
  int64_t left = std::numeric_limits<int64_t>::max();
  fs::path folder = group.relative_path();
  while (true) {
    const fs::path at = folder.empty() ? top : top / folder;
    const auto limit = number_in(at / files.limit);
    const auto usage = number_in(at / files.usage);
    if (limit && usage) {
      const int64_t droppable = number_of(at / "memory.stat", files.droppable).value_or(0);
      left = std::min(left, std::max<int64_t>(0, *limit - *usage + std::min(droppable, *usage)));
    }
    if (folder.empty()) return left;
    folder = folder.parent_path();
  }
}

// Whether the list "cpu,memory" has the memory controller.
bool has_memory(std::string_view controllers) {
  while (!controllers.empty()) {
    const std::string_view one = controllers.substr(0, controllers.find(','));
    if (one == "memory") return true;
    controllers.remove_prefix(std::min(controllers.size(), one.size() + 1));
  }
  return false;
}

// A line of /proc/self/cgroup is "number:controllers:path"; without controllers it is version 2's. In a container the
// path may be one that only the host sees: then the files of the container's own group are at the top.
int64_t left_by_all_groups(const fs::path& root) {
  int64_t left = std::numeric_limits<int64_t>::max();
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path group = line.substr(second + 1);
    const fs::path top = root / "sys/fs/cgroup";
    if (controllers.empty())
      left = std::min(left, left_by_groups(top, group, kVersion2));
    else if (has_memory(controllers))
      left = std::min(left, left_by_groups(top / "memory", group, kVersion1));
  }
  return left;
}

}  // namespace

std::optional<int64_t> available_memory_bytes(const fs::path& root) {
  const auto kilobytes = number_of(root / "proc/meminfo", "MemAvailable:");
  if (!kilobytes) return {};
  return std::min(*kilobytes * 1024, left_by_all_groups(root));
}

}  // namespace regard
