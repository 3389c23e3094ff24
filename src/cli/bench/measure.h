#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/machine.h"
#include "regard/dtype.h"
#include "regard/workspace.h"

namespace regard::cli {

/// One thing to measure: its name, the work, and what the work costs.
struct BenchCase {
  std::string shape;
  double operations = 0;  ///< Floating-point operations inside the mask, two a multiply-add.
  double bytes = 0;       ///< Weights, keys and values that have to be read, each byte once.
  /// Makes the inputs, then returns the work to be timed; called only if the case runs.
  std::function<std::function<void()>(Workspace&)> prepare;
};

struct BenchResult {
  std::string shape;
  double milliseconds = 0;
  double gflops = 0;
  double gbs = 0;
  kernels::MachineLimits limits;  ///< Measured between the runs.
  double percent_of_limit = 0;    ///< Of the roofline: the larger of operations / peak and bytes / bandwidth.
};

/// Runs and measurements of the machine in turns; every figure is the median of its own.
[[nodiscard]] BenchResult measure(const BenchCase& bench, kernels::MachineProbe& probe, Workspace& workspace);

/// The cases of a suite: "attention", "projection", "layer" or "decoder". `model` is a checkpoint for the decoder suite
/// (empty: a random model of SmolLM2-135M's shape), `cache_dtype` the type of its caches.
[[nodiscard]] std::vector<BenchCase> bench_suite(const std::string& suite, const std::string& model, DType cache_dtype);
/// One attention case, see AttentionShape.
[[nodiscard]] BenchCase attention_case(const std::string& shape);

}  // namespace regard::cli
