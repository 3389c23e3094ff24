#pragma once

#include <cstdint>

namespace regard::kernels {

/// Bytes of data cache: of one core, and of the last level, which cores share.
struct CacheSizes {
  int64_t l1 = int64_t{32} << 10;
  int64_t l2 = int64_t{512} << 10;
  int64_t last_level = int64_t{8} << 20;
};

/// As the operating system tells (Linux: sysfs); what it does not tell stays at the defaults above.
[[nodiscard]] const CacheSizes& cache_sizes();

}  // namespace regard::kernels
