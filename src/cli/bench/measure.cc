#include "cli/bench/measure.h"

#include <algorithm>
#include <chrono>

namespace regard::cli {
namespace {

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

// Seconds of one run: short work is repeated until the clock and the wake-up of threads do not matter.
double seconds_of_run(const std::function<void()>& work) {
  constexpr double kLeastSeconds = 0.05;
  const auto start = std::chrono::steady_clock::now();
  double seconds = 0;
  int runs = 0;
  for (; seconds < kLeastSeconds; ++runs) {
    work();
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return seconds / runs;
}

}  // namespace

BenchResult measure(const BenchCase& bench, kernels::MachineProbe& probe, Workspace& workspace) {
  // Enough for a median that a few interruptions do not move.
  constexpr int kRounds = 9;
  const auto work = bench.prepare(workspace);
  work();  // memory grows to its size
  std::vector<double> seconds;
  std::vector<double> gflops;
  std::vector<double> gbs;
  std::vector<double> shares;
  for (int round = 0; round < kRounds; ++round) {
    const auto limits = probe.measure();
    seconds.push_back(seconds_of_run(work));
    gflops.push_back(limits.fma_gflops);
    gbs.push_back(limits.read_gbs);
    const double least = std::max(bench.operations / limits.fma_gflops, bench.bytes / limits.read_gbs) * 1e-9;
    shares.push_back(least / seconds.back());
  }
  const double time = median(seconds);
  return {.shape = bench.shape,
          .milliseconds = time * 1e3,
          .gflops = bench.operations / time * 1e-9,
          .gbs = bench.bytes / time * 1e-9,
          .limits = {.fma_gflops = median(gflops), .read_gbs = median(gbs)},
          .percent_of_limit = 100 * median(shares)};
}

}  // namespace regard::cli
