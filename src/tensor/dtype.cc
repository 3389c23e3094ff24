#include "regard/dtype.h"

#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "tensor/fail.h"

namespace regard {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  size_t bytes;  // 0: less than one
};

constexpr std::array<DTypeInfo, 12> kInfos = {{{DType::f32, "f32", 4},
                                               {DType::f64, "f64", 8},
                                               {DType::bf16, "bf16", 2},
                                               {DType::f16, "f16", 2},
                                               {DType::f8_e4m3, "f8_e4m3", 1},
                                               {DType::f8_e5m2, "f8_e5m2", 1},
                                               {DType::i8, "i8", 1},
                                               {DType::i4, "i4", 0},
                                               {DType::u8, "u8", 1},
                                               {DType::i32, "i32", 4},
                                               {DType::i64, "i64", 8},
                                               {DType::boolean, "bool", 1}}};

// A binary float of 1 sign bit, kExponent and kMantissa bits. kHasInfinity is false for e4m3, whose top exponent holds
// numbers and whose only special value is NaN (all ones).
template <int kExponent, int kMantissa, bool kHasInfinity>
struct NarrowFloat {
  static constexpr int kBias = (1 << (kExponent - 1)) - 1;
  static constexpr uint32_t kMagnitudeMask = (1U << (kExponent + kMantissa)) - 1;
  static constexpr uint32_t kInfinityBits = ((1U << kExponent) - 1) << kMantissa;
  static constexpr uint32_t kNanBits = kHasInfinity ? kInfinityBits | (1U << (kMantissa - 1)) : kMagnitudeMask;
  static constexpr uint32_t kOverflowBits = kHasInfinity ? kInfinityBits : kNanBits;

  static uint32_t encode(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 31) << (kExponent + kMantissa);
    if (std::isnan(value)) return sign | kNanBits;
    if (std::isinf(value)) return sign | kOverflowBits;
    const int exponent = static_cast<int>((bits >> 23) & 0xFF) - 127;
    // Below the smallest normal number the unit in the last place stays fixed.
    const int unit = std::max(exponent, 1 - kBias) - kMantissa;
    const auto magnitude =
        static_cast<uint32_t>(std::nearbyint(std::ldexp(std::fabs(static_cast<double>(value)), -unit)));
    // A carry out of the mantissa raises the exponent by itself, since the fields are adjacent.
    const uint32_t encoded =
        exponent < 1 - kBias ? magnitude
                             : (static_cast<uint32_t>(exponent + kBias) << kMantissa) + (magnitude - (1U << kMantissa));
    const uint32_t limit = kHasInfinity ? kInfinityBits : kNanBits;
    return sign | (encoded >= limit ? kOverflowBits : encoded);
  }

  static float decode(uint32_t bits) {
    const bool negative = (bits >> (kExponent + kMantissa)) != 0;
    const uint32_t magnitude = bits & kMagnitudeMask;
    const bool nan = kHasInfinity ? magnitude > kInfinityBits : magnitude == kNanBits;
    if (nan) return std::copysign(std::numeric_limits<float>::quiet_NaN(), negative ? -1.0F : 1.0F);
    if (kHasInfinity && magnitude == kInfinityBits)
      return std::copysign(std::numeric_limits<float>::infinity(), negative ? -1.0F : 1.0F);
    const uint32_t exponent = magnitude >> kMantissa;
    const uint32_t fraction = magnitude & ((1U << kMantissa) - 1);
    const float value = exponent == 0 ? std::ldexp(static_cast<float>(fraction), 1 - kBias - kMantissa)
                                      : std::ldexp(static_cast<float>(fraction + (1U << kMantissa)),
                                                   static_cast<int>(exponent) - kBias - kMantissa);
    return negative ? -value : value;
  }
};

using F16Format = NarrowFloat<5, 10, true>;
using E4M3Format = NarrowFloat<4, 3, false>;
using E5M2Format = NarrowFloat<5, 2, true>;

}  // namespace

size_t size_of(DType dtype) {
  const size_t bytes = kInfos[static_cast<size_t>(dtype)].bytes;
  require(bytes != 0, "dtype is {}, which only caches hold; expected a type of whole bytes", name_of(dtype));
  return bytes;
}

std::string_view name_of(DType dtype) { return kInfos[static_cast<size_t>(dtype)].name; }

DType dtype_from_name(std::string_view name) {
  for (const auto& info : kInfos)
    if (info.name == name) return info.dtype;
  fail("dtype is \"{}\", expected one of f32, f64, bf16, f16, f8_e4m3, f8_e5m2, i8, i4, u8, i32, i64, bool", name);
}

Float16::Float16(float value) : bits(static_cast<uint16_t>(F16Format::encode(value))) {}
Float16::operator float() const { return F16Format::decode(bits); }

Float8E4M3::Float8E4M3(float value) : bits(static_cast<uint8_t>(E4M3Format::encode(value))) {}
Float8E4M3::operator float() const { return E4M3Format::decode(bits); }

Float8E5M2::Float8E5M2(float value) : bits(static_cast<uint8_t>(E5M2Format::encode(value))) {}
Float8E5M2::operator float() const { return E5M2Format::decode(bits); }

}  // namespace regard
