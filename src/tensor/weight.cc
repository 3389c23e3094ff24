#include "regard/weight.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "regard/tensor.h"
#include "tensor/fail.h"

namespace regard {
namespace {

struct TypeInfo {
  std::string_view name;
  WeightBlock block;
  int64_t group;
};

// In the order of WeightType. Block layouts are those of ggml.
constexpr std::array<TypeInfo, 19> kTypes = {{{"f32", {1, 4}, 0},
                                              {"f64", {1, 8}, 0},
                                              {"bf16", {1, 2}, 0},
                                              {"f16", {1, 2}, 0},
                                              {"f8_e4m3", {1, 1}, 0},
                                              {"f8_e5m2", {1, 1}, 0},
                                              {"i8", {1, 1}, 0},
                                              {"u8", {1, 1}, 0},
                                              {"i32", {1, 4}, 0},
                                              {"i64", {1, 8}, 0},
                                              {"bool", {1, 1}, 0},
                                              {"q8_0", {32, 34}, 32},
                                              {"q4_0", {32, 18}, 32},
                                              {"q4_1", {32, 20}, 32},
                                              {"q5_0", {32, 22}, 32},
                                              {"q5_1", {32, 24}, 32},
                                              {"q4_k", {256, 144}, 32},
                                              {"q5_k", {256, 176}, 32},
                                              {"q6_k", {256, 210}, 16}}};

const TypeInfo& info_of(WeightType type) { return kTypes[static_cast<size_t>(type)]; }

template <class T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float read_half(const std::byte* from) {
  Float16 value;
  std::memcpy(&value.bits, from, sizeof(value.bits));
  return static_cast<float>(value);
}

int low(std::byte value) { return std::to_integer<int>(value) & 15; }
int high(std::byte value) { return std::to_integer<int>(value) >> 4; }

// Each unpack_* takes one block: `q` are its integers, `s` and `m` its groups' scales and minimums.

void unpack_q8_0(const std::byte* block, int8_t* q, float* s, float*) {
  s[0] = read_half(block);
  std::memcpy(q, block + 2, 32);
}

void unpack_nibbles(const std::byte* packed, int8_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>(low(packed[i]));
    q[i + 16] = static_cast<int8_t>(high(packed[i]));
  }
}

// The fifth bits of 32 values, one each in `bits`.
void add_fifth_bits(uint32_t bits, int8_t* q) {
  for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(q[i] | static_cast<int8_t>((bits >> i & 1U) << 4U));
}

void unpack_q4_0(const std::byte* block, int8_t* q, float* s, float* m) {
  s[0] = read_half(block);
  m[0] = -8.0F * s[0];
  unpack_nibbles(block + 2, q);
}

void unpack_q4_1(const std::byte* block, int8_t* q, float* s, float* m) {
  s[0] = read_half(block);
  m[0] = read_half(block + 2);
  unpack_nibbles(block + 4, q);
}

void unpack_q5_0(const std::byte* block, int8_t* q, float* s, float*) {
  s[0] = read_half(block);
  unpack_nibbles(block + 6, q);
  add_fifth_bits(read<uint32_t>(block + 2), q);
  for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(q[i] - 16);
}

void unpack_q5_1(const std::byte* block, int8_t* q, float* s, float* m) {
  s[0] = read_half(block);
  m[0] = read_half(block + 2);
  unpack_nibbles(block + 8, q);
  add_fifth_bits(read<uint32_t>(block + 4), q);
}

// The scales and minimums of q4_k and q5_k: two f16 for the block, times 6-bit factors of eight groups in 12 bytes.
void unpack_k_scales(const std::byte* block, float* s, float* m) {
  const float scale = read_half(block);
  const float minimum = read_half(block + 2);
  const auto byte = [&](int i) { return std::to_integer<int>(block[4 + i]); };
  for (int j = 0; j < 4; ++j) {
    s[j] = scale * static_cast<float>(byte(j) & 63);
    m[j] = -minimum * static_cast<float>(byte(j + 4) & 63);
    s[j + 4] = scale * static_cast<float>((byte(j + 8) & 15) | (byte(j) >> 6 << 4));
    m[j + 4] = -minimum * static_cast<float>((byte(j + 8) >> 4) | (byte(j + 4) >> 6 << 4));
  }
}

// Groups 2i and 2i + 1 are the low and the high halves of 32 bytes.
void unpack_k_nibbles(const std::byte* packed, int8_t* q) {
  for (int pair = 0; pair < 4; ++pair)
    for (int i = 0; i < 32; ++i) {
      q[pair * 64 + i] = static_cast<int8_t>(low(packed[pair * 32 + i]));
      q[pair * 64 + 32 + i] = static_cast<int8_t>(high(packed[pair * 32 + i]));
    }
}

void unpack_q4_k(const std::byte* block, int8_t* q, float* s, float* m) {
  unpack_k_scales(block, s, m);
  unpack_k_nibbles(block + 16, q);
}

void unpack_q5_k(const std::byte* block, int8_t* q, float* s, float* m) {
  unpack_k_scales(block, s, m);
  unpack_k_nibbles(block + 48, q);
  for (int group = 0; group < 8; ++group)
    for (int i = 0; i < 32; ++i)
      if ((std::to_integer<int>(block[16 + i]) >> group & 1) != 0)
        q[group * 32 + i] = static_cast<int8_t>(q[group * 32 + i] + 16);
}

void unpack_q6_k(const std::byte* block, int8_t* q, float* s, float*) {
  const float scale = read_half(block + 208);
  for (int group = 0; group < 16; ++group) s[group] = scale * static_cast<float>(read<int8_t>(block + 192 + group));
  for (int half = 0; half < 2; ++half) {
    const std::byte* lows = block + half * 64;
    const std::byte* highs = block + 128 + half * 32;
    for (int i = 0; i < 32; ++i) {
      const int two = std::to_integer<int>(highs[i]);
      int8_t* out = q + half * 128 + i;
      out[0] = static_cast<int8_t>((low(lows[i]) | (two & 3) << 4) - 32);
      out[32] = static_cast<int8_t>((low(lows[i + 32]) | (two >> 2 & 3) << 4) - 32);
      out[64] = static_cast<int8_t>((high(lows[i]) | (two >> 4 & 3) << 4) - 32);
      out[96] = static_cast<int8_t>((high(lows[i + 32]) | (two >> 6 & 3) << 4) - 32);
    }
  }
}

using UnpackBlock = void (*)(const std::byte*, int8_t*, float*, float*);

UnpackBlock unpacker_of(WeightType type) {
  switch (type) {
    case WeightType::q8_0:
      return unpack_q8_0;
    case WeightType::q4_0:
      return unpack_q4_0;
    case WeightType::q4_1:
      return unpack_q4_1;
    case WeightType::q5_0:
      return unpack_q5_0;
    case WeightType::q5_1:
      return unpack_q5_1;
    case WeightType::q4_k:
      return unpack_q4_k;
    case WeightType::q5_k:
      return unpack_q5_k;
    case WeightType::q6_k:
      return unpack_q6_k;
    default:
      fail("weight: type {} is not quantised", name_of(type));
  }
}

template <class T>
void decode_plain(std::span<const std::byte> bytes, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(read<T>(bytes.data() + i * sizeof(T)));
}

void decode_quantized(const WeightView& weight, int64_t row, std::span<float> out) {
  const auto group = static_cast<size_t>(group_of(weight.type));
  std::vector<int8_t> integers(out.size());
  std::vector<float> scales(out.size() / group);
  std::vector<float> minimums(out.size() / group);
  unpack_row(weight, row, {.integers = integers, .scales = scales, .minimums = minimums});
  for (size_t i = 0; i < out.size(); ++i) {
    const auto value = static_cast<float>(integers[i]);
    const float minimum = minimums[i / group];
    out[i] = minimum == 0.0F ? value * scales[i / group] : std::fma(value, scales[i / group], minimum);
  }
}

}  // namespace

WeightBlock block_of(WeightType type) { return info_of(type).block; }
std::string_view name_of(WeightType type) { return info_of(type).name; }
bool is_quantized(WeightType type) { return info_of(type).group != 0; }
int64_t group_of(WeightType type) { return info_of(type).group; }

WeightType weight_type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return WeightType::f32;
    case DType::f64:
      return WeightType::f64;
    case DType::bf16:
      return WeightType::bf16;
    case DType::f16:
      return WeightType::f16;
    case DType::f8_e4m3:
      return WeightType::f8_e4m3;
    case DType::f8_e5m2:
      return WeightType::f8_e5m2;
    case DType::i8:
      return WeightType::i8;
    case DType::u8:
      return WeightType::u8;
    case DType::i32:
      return WeightType::i32;
    case DType::i64:
      return WeightType::i64;
    case DType::boolean:
      return WeightType::boolean;
    case DType::i4:
      fail("weight: dtype is i4, which only caches hold");
  }
  fail("weight: dtype {} is unknown", static_cast<int>(dtype));
}

WeightView WeightView::make(WeightType type, int64_t rows, int64_t columns, std::span<const std::byte> bytes) {
  const WeightBlock block = block_of(type);
  require(rows >= 0 && columns >= 0, "weight: shape is [{}, {}], expected sizes of 0 or more", rows, columns);
  require(columns % block.values == 0, "weight: {} has rows of {} values, expected a multiple of {}", name_of(type),
          columns, block.values);
  int64_t expected = 0;
  require(!__builtin_mul_overflow(columns / block.values, block.bytes, &expected) &&
              !__builtin_mul_overflow(expected, rows, &expected) && static_cast<size_t>(expected) == bytes.size(),
          "weight: {} of shape [{}, {}] has {} bytes, expected {}", name_of(type), rows, columns, bytes.size(),
          expected);
  return {.type = type, .rows = rows, .columns = columns, .bytes = bytes};
}

std::span<const std::byte> WeightView::row(int64_t index) const {
  require(index >= 0 && index < rows, "weight: row is {}, expected 0 to {}", index, rows - 1);
  return bytes.subspan(static_cast<size_t>(index * row_bytes()), static_cast<size_t>(row_bytes()));
}

WeightView WeightView::row_range(int64_t first, int64_t count) const {
  require(first >= 0 && count >= 0 && first <= rows && count <= rows - first,
          "weight: {} rows from {} are asked for, but there are {}", count, first, rows);
  return {.type = type,
          .rows = count,
          .columns = columns,
          .bytes = bytes.subspan(static_cast<size_t>(first * row_bytes()), static_cast<size_t>(count * row_bytes()))};
}

void unpack_row(const WeightView& weight, int64_t row, const QuantizedRow& out) {
  const UnpackBlock unpack = unpacker_of(weight.type);
  const WeightBlock block = block_of(weight.type);
  const int64_t group = group_of(weight.type);
  require(out.integers.size() == static_cast<size_t>(weight.columns) &&
              out.scales.size() == static_cast<size_t>(weight.columns / group) &&
              out.minimums.size() == out.scales.size(),
          "weight: a row of {} values is unpacked into {} integers, {} scales and {} minimums", weight.columns,
          out.integers.size(), out.scales.size(), out.minimums.size());
  std::ranges::fill(out.minimums, 0.0F);
  const std::byte* from = weight.row(row).data();
  for (int64_t i = 0; i < weight.columns; i += block.values, from += block.bytes)
    unpack(from, out.integers.data() + i, out.scales.data() + i / group, out.minimums.data() + i / group);
}

void decode_row(const WeightView& weight, int64_t row, std::span<float> out) {
  require(out.size() == static_cast<size_t>(weight.columns), "weight: a row of {} values is decoded into {}",
          weight.columns, out.size());
  if (is_quantized(weight.type)) return decode_quantized(weight, row, out);
  const auto bytes = weight.row(row);
  switch (weight.type) {
    case WeightType::f32:
      return decode_plain<float>(bytes, out);
    case WeightType::f64:
      return decode_plain<double>(bytes, out);
    case WeightType::bf16:
      return decode_plain<BFloat16>(bytes, out);
    case WeightType::f16:
      return decode_plain<Float16>(bytes, out);
    case WeightType::f8_e4m3:
      return decode_plain<Float8E4M3>(bytes, out);
    case WeightType::f8_e5m2:
      return decode_plain<Float8E5M2>(bytes, out);
    case WeightType::i8:
      return decode_plain<int8_t>(bytes, out);
    case WeightType::u8:
    case WeightType::boolean:
      return decode_plain<uint8_t>(bytes, out);
    case WeightType::i32:
      return decode_plain<int32_t>(bytes, out);
    case WeightType::i64:
      return decode_plain<int64_t>(bytes, out);
    default:
      fail("weight: type {} can't be decoded", name_of(weight.type));
  }
}

}  // namespace regard
