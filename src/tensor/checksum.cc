#include "tensor/checksum.h"

#include <array>
#include <cstring>

namespace regard {
namespace {

// 2^64 / the golden ratio: as many ones as zeros, so that a flipped bit flips many.
constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;
constexpr uint64_t kStart = 0xCBF29CE484222325;

// A product carries bits up only, so its upper half comes down as well: one flipped bit of the next word can't undo one
// of this.
uint64_t mix(uint64_t sum, uint64_t word) {
  const uint64_t product = (sum ^ word) * kFactor;
  return product ^ product >> 32;
}

}  // namespace

uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr size_t kLanes = 4;
  std::array<uint64_t, kLanes> lanes{};
  for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = kStart + lane;
  const std::byte* from = bytes.data();
  size_t left = bytes.size();
  std::array<uint64_t, kLanes> words{};
  for (; left >= sizeof(words); from += sizeof(words), left -= sizeof(words)) {
    std::memcpy(words.data(), from, sizeof(words));
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = mix(lanes[lane], words[lane]);
  }
  words = {};
  if (left > 0) std::memcpy(words.data(), from, left);
  uint64_t sum = mix(kStart, bytes.size());
  for (size_t lane = 0; lane < kLanes; ++lane) sum = mix(mix(sum, lanes[lane]), words[lane]);
  return sum;
}

}  // namespace regard
