#include "kernels/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "regard/tensor.h"

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

template <class Work>
double fastest_seconds(int repeats, Work work) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

MachineLimits measure_machine(const Threads& threads) {
  constexpr int64_t kRounds = 4'000'000;
  constexpr int64_t kFloats = int64_t{1} << 26;  // 256 MB
  constexpr int64_t kPiece = int64_t{1} << 16;
  constexpr int kRepeats = 5;
  MachineLimits limits;
  std::vector<double> operations(static_cast<size_t>(threads.count()));
  const double fma_seconds = fastest_seconds(kRepeats, [&] {
    threads.for_each(threads.count(), [&](int64_t task, int) {
      float sink[2] = {0.999F, 1e-3F};
      operations[static_cast<size_t>(task)] =
          HWY_DYNAMIC_DISPATCH(run_fmas)(kRounds, sink) + 0.0 * static_cast<double>(sink[0]);
    });
  });
  for (const double count : operations) limits.fma_gflops += count / fma_seconds * 1e-9;

  const Buffer memory(kFloats * sizeof(float));
  auto* floats = reinterpret_cast<float*>(memory.data());
  threads.for_each(kFloats / kPiece, [&](int64_t piece, int) { std::fill_n(floats + piece * kPiece, kPiece, 1.0F); });
  std::atomic<float> total = 0;
  const double read_seconds = fastest_seconds(kRepeats, [&] {
    threads.for_each(kFloats / kPiece, [&](int64_t piece, int) {
      total = total + HWY_DYNAMIC_DISPATCH(sum_floats)(floats + piece * kPiece, kPiece);
    });
  });
  limits.read_gbs = static_cast<double>(kFloats) * sizeof(float) / read_seconds * 1e-9;
  return limits;
}

}  // namespace regard::kernels
#endif  // HWY_ONCE
