#include "tensor/checksum.h"

#include <array>
#include <bit>
#include <cstring>

namespace regard {
namespace {

constexpr uint64_t kPrime = 0x100000001B3;
constexpr uint64_t kBasis = 0xCBF29CE484222325;

// The rotation brings high bits down: two flipped top bits would cancel each other otherwise.
uint64_t mix(uint64_t sum, uint64_t word) { return std::rotl((sum ^ word) * kPrime, 29); }

}  // namespace

uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr size_t kLanes = 4;
  std::array<uint64_t, kLanes> lanes{};
  for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = kBasis + lane;
  const std::byte* from = bytes.data();
  size_t left = bytes.size();
  std::array<uint64_t, kLanes> words{};
  for (; left >= sizeof(words); from += sizeof(words), left -= sizeof(words)) {
    std::memcpy(words.data(), from, sizeof(words));
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = mix(lanes[lane], words[lane]);
  }
  words = {};
  if (left > 0) std::memcpy(words.data(), from, left);
  uint64_t sum = mix(kBasis, bytes.size());
  for (size_t lane = 0; lane < kLanes; ++lane) sum = mix(mix(sum, lanes[lane]), words[lane]);
  return sum;
}

}  // namespace regard
