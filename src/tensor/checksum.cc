#include "tensor/checksum.h"

#include <array>
<<<<<<< HEAD
=======
#include <bit>
>>>>>>> plan
#include <cstring>

namespace regard {
namespace {

<<<<<<< HEAD
// 2^64 / the golden ratio: as many ones as zeros, so that a flipped bit flips many.
constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;
constexpr uint64_t kStart = 0xCBF29CE484222325;

// A product carries bits up only, so its upper half comes down as well: one flipped bit of the next word can't undo one
// of this.
uint64_t mix(uint64_t sum, uint64_t word) {
  const uint64_t product = (sum ^ word) * kFactor;
  return product ^ product >> 32;
}
=======
constexpr uint64_t kPrime = 0x100000001B3;
constexpr uint64_t kBasis = 0xCBF29CE484222325;

// The rotation brings high bits down: two flipped top bits would cancel each other otherwise.
uint64_t mix(uint64_t sum, uint64_t word) { return std::rotl((sum ^ word) * kPrime, 29); }
>>>>>>> plan

}  // namespace

uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr size_t kLanes = 4;
  std::array<uint64_t, kLanes> lanes{};
<<<<<<< HEAD
  for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = kStart + lane;
=======
  for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = kBasis + lane;
>>>>>>> plan
  const std::byte* from = bytes.data();
  size_t left = bytes.size();
  std::array<uint64_t, kLanes> words{};
  for (; left >= sizeof(words); from += sizeof(words), left -= sizeof(words)) {
    std::memcpy(words.data(), from, sizeof(words));
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = mix(lanes[lane], words[lane]);
  }
  words = {};
  if (left > 0) std::memcpy(words.data(), from, left);
<<<<<<< HEAD
  uint64_t sum = mix(kStart, bytes.size());
=======
  uint64_t sum = mix(kBasis, bytes.size());
>>>>>>> plan
  for (size_t lane = 0; lane < kLanes; ++lane) sum = mix(mix(sum, lanes[lane]), words[lane]);
  return sum;
}

}  // namespace regard
