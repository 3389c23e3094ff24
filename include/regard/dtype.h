#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace regard {

/// Element types of tensors and caches. Names in text are those of this enum: "f32", "bf16", "f8_e4m3", ...
enum class DType : uint8_t {
  f32,
  f64,
  bf16,
  f16,
  f8_e4m3,
  f8_e5m2,
  i8,
  i4,  ///< signed 4 bits, in caches only
  u8,
  i32,
  i64,
  boolean
};

/// Bytes of one element. Throws Error for i4, which has no whole ones and which no tensor holds.
[[nodiscard]] size_t size_of(DType dtype);
[[nodiscard]] std::string_view name_of(DType dtype);
/// The inverse of `name_of`. Throws Error for a name that no type has.
[[nodiscard]] DType dtype_from_name(std::string_view name);

// The narrow floats hold bits only; arithmetic happens in f32. Conversions from f32 round to nearest even. bf16, f16
// and e5m2 overflow to infinity as IEEE does; e4m3 (the "fn" form, no infinity) overflows to NaN. NaN stays NaN.
struct BFloat16 {
  uint16_t bits = 0;
  BFloat16() = default;
  explicit BFloat16(float value) {
    const auto wide = std::bit_cast<uint32_t>(value);
    const bool nan = (wide & 0x7FFFFFFFU) > 0x7F800000U;
    bits = static_cast<uint16_t>((nan ? wide | 0x400000U : wide + 0x7FFFU + ((wide >> 16) & 1U)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  friend bool operator==(BFloat16, BFloat16) = default;
};

struct Float16 {
  uint16_t bits = 0;
  Float16() = default;
  explicit Float16(float value);
  explicit operator float() const;
  friend bool operator==(Float16, Float16) = default;
};

struct Float8E4M3 {
  uint8_t bits = 0;
  Float8E4M3() = default;
  explicit Float8E4M3(float value);
  explicit operator float() const;
  friend bool operator==(Float8E4M3, Float8E4M3) = default;
};

struct Float8E5M2 {
  uint8_t bits = 0;
  Float8E5M2() = default;
  explicit Float8E5M2(float value);
  explicit operator float() const;
  friend bool operator==(Float8E5M2, Float8E5M2) = default;
};

/// The DType of a C++ element type.
template <class T>
inline constexpr DType kDTypeOf = [] {
  static_assert(sizeof(T) == 0, "no tensor holds elements of this type");
  return DType::f32;
}();
template <>
inline constexpr DType kDTypeOf<float> = DType::f32;
template <>
inline constexpr DType kDTypeOf<double> = DType::f64;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::bf16;
template <>
inline constexpr DType kDTypeOf<Float16> = DType::f16;
template <>
inline constexpr DType kDTypeOf<Float8E4M3> = DType::f8_e4m3;
template <>
inline constexpr DType kDTypeOf<Float8E5M2> = DType::f8_e5m2;
template <>
inline constexpr DType kDTypeOf<int8_t> = DType::i8;
template <>
inline constexpr DType kDTypeOf<uint8_t> = DType::u8;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::i32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::i64;
template <>
inline constexpr DType kDTypeOf<bool> = DType::boolean;

}  // namespace regard
