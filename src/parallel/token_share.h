#pragma once

#include <cstdint>

namespace regard {

// The tokens of a sequence that one of several ranks with the same KV head keeps, in flash decoding: runs of 256
// positions, dealt out in turn. The reference deals single positions [PAR-52]; runs are the kernels' key blocks, so
// that partial results can be those of one rank, bit for bit.
struct TokenShare {
  static constexpr int64_t kRun = 256;

  int64_t ranks = 1;
  int64_t index = 0;

  [[nodiscard]] constexpr bool is_all() const { return ranks == 1; }
  [[nodiscard]] constexpr bool owns(int64_t position) const { return position / kRun % ranks == index; }
  // Own positions below `position`: where it is, or would be, kept.
  [[nodiscard]] constexpr int64_t count_below(int64_t position) const {
    const int64_t runs = position / kRun;
    const int64_t own_runs = (runs + ranks - 1 - index) / ranks;
    return own_runs * kRun + (runs % ranks == index ? position % kRun : 0);
  }
};

}  // namespace regard
