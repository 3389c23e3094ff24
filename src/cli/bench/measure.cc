#include "cli/bench/measure.h"

#include <algorithm>
#include <chrono>

namespace regard::cli {

BenchResult measure(const BenchCase& bench, const kernels::MachineLimits& limits, Workspace& workspace) {
  // Enough for a median that a single interruption does not move.
  constexpr size_t kLeastRuns = 5;
  constexpr double kLeastSeconds = 0.5;
  const auto work = bench.prepare(workspace);
  work();  // memory grows to its size
  std::vector<double> seconds;
  double total = 0;
  while (seconds.size() < kLeastRuns || total < kLeastSeconds) {
    const auto start = std::chrono::steady_clock::now();
    work();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    total += seconds.back();
  }
  std::ranges::nth_element(seconds, seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2));
  const double median = seconds[seconds.size() / 2];
  const double limit = std::max(bench.operations / limits.fma_gflops, bench.bytes / limits.read_gbs) * 1e-9;
  return {.shape = bench.shape,
          .milliseconds = median * 1e3,
          .gflops = bench.operations / median * 1e-9,
          .gbs = bench.bytes / median * 1e-9,
          .percent_of_limit = 100 * limit / median};
}

}  // namespace regard::cli
