#include "rank_speed.h"

#include <algorithm>
#include <array>

namespace regard::bench {
namespace {

constexpr size_t kSentBytes = size_t{4} << 20;

// A weight matrix far larger than the caches.
constexpr int64_t kOut = 16384;
constexpr int64_t kIn = 4096;
constexpr int64_t kRows = 64;

}  // namespace

RankSpeedProbe::RankSpeedProbe(Communicator& world, Workspace& workspace)
    : world_(world),
      pair_(world.split(world.rank() / 2, world.rank())),
      workspace_(workspace),
      rows_(DType::f32, {kRows, kIn}),
      product_(DType::f32, {kRows, kOut}),
      own_(kSentBytes),
      received_(static_cast<size_t>(world.size()), std::vector<std::byte>(kSentBytes)) {
  const std::vector<BFloat16> weights(static_cast<size_t>(kOut * kIn), BFloat16(0.5F));
  linear_ = Linear::load(WeightView::make(WeightType::bf16, kOut, kIn, std::as_bytes(std::span(weights))), {},
                         workspace.threads());
}

RankSpeed RankSpeedProbe::measure() {
  RankSpeed speed;
  measure_machine(speed);
  if (world_.size() > 1) measure_link(speed);
  return speed;
}

// Each `times` so often that it takes some 0.3 s.
void RankSpeedProbe::measure_machine(RankSpeed& speed) {
  const auto seconds_of_product = [&](int64_t rows, int times) {
    const std::array<const Linear*, 1> layers{&linear_};
    const std::array<TensorView, 1> outs{product_.view().slice(0, 0, rows)};
    return seconds_of_all(world_,
                          [&] {
                            for (int i = 0; i < times; ++i)
                              apply(layers, rows_.view().slice(0, 0, rows), outs, workspace_);
                          }) /
           times;
  };
  speed.flops = 2.0 * kRows * kOut * kIn / seconds_of_product(kRows, 4);
  speed.bandwidth = static_cast<double>(linear_.bytes()) / seconds_of_product(1, 60);
}

void RankSpeedProbe::measure_link(RankSpeed& speed) {
  constexpr int kRounds = 200;
  const int others = world_.size() - 1;
  const auto round = [&](Communicator& group) {
    return seconds_of_all(world_,
                          [&] {
                            for (int i = 0; i < kRounds; ++i) (void)group.gather(0);
                          }) /
           kRounds;
  };
  const double with_all = round(world_);
  const double with_one = round(*pair_);
  speed.per_message = others > 1 ? std::max(with_all - with_one, 0.0) / (others - 1) : 0;
  speed.latency = std::max(with_all - others * speed.per_message, 0.0);

  const std::vector<std::span<std::byte>> parts(received_.begin(), received_.end());
  const double seconds = seconds_of_all(world_, [&] { world_.all_gather(own_, parts); });
  speed.link = static_cast<double>(kSentBytes) * others / seconds;
}

}  // namespace regard::bench
