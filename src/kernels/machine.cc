#include "kernels/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "regard/tensor.h"
#include "regard/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/machine.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, because it is compiled once per target.
#include "kernels/microkernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace regard::kernels::HWY_NAMESPACE {
namespace {

// Enough independent chains to hide the latency of an FMA.
constexpr int kChains = kVectors == 1 ? 24 : 12;

// Returns the floating-point operations done. The sum goes out through `sink`, so that the work can't be dropped.
double run_fmas(int64_t rounds, float* sink) {
  Vec sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = hn::Set(F32(), static_cast<float>(i));
  const Vec factor = hn::Set(F32(), sink[0]);
  const Vec term = hn::Set(F32(), sink[1]);
  for (int64_t round = 0; round < rounds; ++round) {
    REGARD_UNROLL
    for (int i = 0; i < kChains; ++i) sums[i] = hn::MulAdd(sums[i], factor, term);
  }
  Vec total = sums[0];
  for (int i = 1; i < kChains; ++i) total = hn::Add(total, sums[i]);
  sink[0] = hn::GetLane(total);
  return 2.0 * static_cast<double>(rounds) * kChains * static_cast<double>(kLanes);
}

float sum_floats(const float* data, int64_t count) {
  constexpr int kSums = 8;
  Vec sums[kSums];
  for (Vec& sum : sums) sum = hn::Zero(F32());
  for (int64_t i = 0; i < count; i += kSums * static_cast<int64_t>(kLanes)) {
    REGARD_UNROLL
    for (int s = 0; s < kSums; ++s)
      sums[s] = hn::Add(sums[s], hn::LoadU(F32(), data + i + s * static_cast<int64_t>(kLanes)));
  }
  Vec total = sums[0];
  for (int s = 1; s < kSums; ++s) total = hn::Add(total, sums[s]);
  return hn::GetLane(total);
}

}  // namespace
}  // namespace regard::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace regard::kernels {
namespace {
HWY_EXPORT(run_fmas);
HWY_EXPORT(sum_floats);

using Clock = std::chrono::steady_clock;

constexpr int64_t kPiece = int64_t{1} << 16;

}  // namespace

MachineProbe::MachineProbe(const Threads& threads)
    : threads_(threads),
      memory_(static_cast<size_t>(std::max(int64_t{1} << 28, 4 * CacheSizes::of_machine().last_level))) {
  auto* floats = reinterpret_cast<float*>(memory_.data());
  const auto pieces = static_cast<int64_t>(memory_.size() / sizeof(float)) / kPiece;
  threads.for_each(pieces, [&](int64_t piece, int) { std::fill_n(floats + piece * kPiece, kPiece, 1.0F); });
}

MachineLimits MachineProbe::measure() { return {.fma_gflops = fma_gflops(), .read_gbs = read_gbs()}; }

double MachineProbe::fma_gflops() {
  constexpr int64_t kRounds = 2'000'000;
  std::atomic<double> operations = 0;
  const auto start = Clock::now();
  threads_.for_each(threads_.count(), [&](int64_t, int) {
    float sink[2] = {0.999F, 1e-3F};
    const double done = HWY_DYNAMIC_DISPATCH(run_fmas)(kRounds, sink);
    operations.fetch_add(done + 0.0 * static_cast<double>(sink[0]));
  });
  return operations / std::chrono::duration<double>(Clock::now() - start).count() * 1e-9;
}

double MachineProbe::read_gbs() {
  const auto* floats = reinterpret_cast<const float*>(memory_.data());
  const auto pieces = static_cast<int64_t>(memory_.size() / sizeof(float)) / kPiece;
  std::atomic<float> total = 0;
  const auto start = Clock::now();
  threads_.for_each(pieces, [&](int64_t piece, int) {
    total.fetch_add(HWY_DYNAMIC_DISPATCH(sum_floats)(floats + piece * kPiece, kPiece));
  });
  return static_cast<double>(memory_.size()) / std::chrono::duration<double>(Clock::now() - start).count() * 1e-9;
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
