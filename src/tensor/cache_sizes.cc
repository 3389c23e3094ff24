#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "regard/workspace.h"

namespace regard {
namespace {

// sysfs rather than sysconf: inside virtual machines the C library has been seen to report ten times the last level.
CacheSizes read_sysfs() {
  CacheSizes sizes;
  for (int index = 0;; ++index) {
    const auto read = [&](const char* name) {
      std::string text;
      std::ifstream(fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/{}", index, name)) >> text;
      return text;
    };
    const std::string level = read("level");
    if (level.empty()) return sizes;
    int64_t size = 0;
    char unit = 0;
    std::sscanf(read("size").c_str(), "%ld%c", &size, &unit);  // NOLINT(cert-err34-c): nothing read leaves 0
    size <<= unit == 'K' ? 10 : unit == 'M' ? 20 : 0;
    if (size <= 0 || read("type") == "Instruction") continue;
    if (level == "1") sizes.l1 = size;
    if (level == "2") sizes.l2 = size;
    if (level >= "2") sizes.last_level = size;
  }
}

}  // namespace

const CacheSizes& CacheSizes::of_machine() {
  static const CacheSizes sizes = read_sysfs();
  return sizes;
}

}  // namespace regard
