#include "support/block_formats.h"

#include <array>
#include <cmath>
#include <stdexcept>

namespace regard::test {
namespace {

using Block = std::span<const std::byte>;

int byte_at(Block block, size_t at) { return std::to_integer<int>(block[at]); }
int signed_at(Block block, size_t at) { return static_cast<int8_t>(byte_at(block, at)); }

// IEEE binary16, little-endian; never infinite or NaN here.
double half_at(Block block, size_t at) {
  const int bits = byte_at(block, at) | byte_at(block, at + 1) << 8;
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

// Types of 32 values: value i and value i + 16 share byte i.
int nibble(Block block, size_t first_byte, size_t i) {
  return i < 16 ? byte_at(block, first_byte + i) & 15 : byte_at(block, first_byte + i - 16) >> 4;
}

int fifth_bit(Block block, size_t first_byte, size_t i) { return byte_at(block, first_byte + i / 8) >> i % 8 & 1; }

struct ScaleAndMinimum {
  int scale;
  int minimum;
};

// q4_k and q5_k: eight 6-bit scales and minimums in 12 bytes from `first_byte` on (get_scale_min_k4).
ScaleAndMinimum k_factors(Block block, size_t first_byte, size_t group) {
  const auto packed = [&](size_t i) { return byte_at(block, first_byte + i); };
  if (group < 4) return {.scale = packed(group) & 63, .minimum = packed(group + 4) & 63};
  return {.scale = (packed(group + 4) & 15) | (packed(group - 4) >> 6) << 4,
          .minimum = (packed(group + 4) >> 4) | (packed(group) >> 6) << 4};
}

// q4_k and q5_k: 64 values share 32 bytes, the first half of them the low nibbles.
int k_nibble(Block block, size_t first_byte, size_t i) {
  const int byte = byte_at(block, first_byte + i / 64 * 32 + i % 32);
  return i % 64 < 32 ? byte & 15 : byte >> 4;
}

double q4_k(Block block, size_t i) {
  const auto [scale, minimum] = k_factors(block, 4, i / 32);
  return half_at(block, 0) * scale * k_nibble(block, 16, i) - half_at(block, 2) * minimum;
}

double q5_k(Block block, size_t i) {
  const auto [scale, minimum] = k_factors(block, 4, i / 32);
  const int high = byte_at(block, 16 + i % 32) >> i / 32 & 1;
  return half_at(block, 0) * scale * (k_nibble(block, 48, i) + 16 * high) - half_at(block, 2) * minimum;
}

// 128 values share 64 bytes of low nibbles and 32 bytes of high pairs.
double q6_k(Block block, size_t i) {
  const size_t half = i / 128;
  const size_t quarter = i % 128 / 32;
  const int lows = byte_at(block, half * 64 + (quarter % 2) * 32 + i % 32);
  const int low = quarter < 2 ? lows & 15 : lows >> 4;
  const int high = byte_at(block, 128 + half * 32 + i % 32) >> 2 * quarter & 3;
  return half_at(block, 208) * signed_at(block, 192 + i / 16) * (low + 16 * high - 32);
}

constexpr std::array<size_t, 1> kFirst = {0};
constexpr std::array<size_t, 2> kFirstTwo = {0, 2};
constexpr std::array<size_t, 1> kLast = {208};

}  // namespace

double block_value(WeightType type, std::span<const std::byte> block, size_t i) {
  switch (type) {
    case WeightType::q8_0:
      return half_at(block, 0) * signed_at(block, 2 + i);
    case WeightType::q4_0:
      return half_at(block, 0) * (nibble(block, 2, i) - 8);
    case WeightType::q4_1:
      return half_at(block, 0) * nibble(block, 4, i) + half_at(block, 2);
    case WeightType::q5_0:
      return half_at(block, 0) * (nibble(block, 6, i) + 16 * fifth_bit(block, 2, i) - 16);
    case WeightType::q5_1:
      return half_at(block, 0) * (nibble(block, 8, i) + 16 * fifth_bit(block, 4, i)) + half_at(block, 2);
    case WeightType::q4_k:
      return q4_k(block, i);
    case WeightType::q5_k:
      return q5_k(block, i);
    case WeightType::q6_k:
      return q6_k(block, i);
    default:
      throw std::invalid_argument("no block format");
  }
}

std::span<const size_t> half_places(WeightType type) {
  switch (type) {
    case WeightType::q8_0:
    case WeightType::q4_0:
    case WeightType::q5_0:
      return kFirst;
    case WeightType::q6_k:
      return kLast;
    default:
      return kFirstTwo;
  }
}

}  // namespace regard::test
