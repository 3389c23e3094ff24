#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace regard::test {

// Numbers of GGUF's value types and tensor types.
namespace gguf {
enum Value : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
enum Type : uint32_t {
  type_f32 = 0,
  type_f16 = 1,
  type_q4_0 = 2,
  type_q4_1 = 3,
  type_q5_0 = 6,
  type_q5_1 = 7,
  type_q8_0 = 8,
  type_q2_k = 10,
  type_q4_k = 12,
  type_q5_k = 13,
  type_q6_k = 14,
  type_i8 = 24,
  type_i32 = 26,
  type_i64 = 27,
  type_f64 = 28,
  type_bf16 = 30
};
}  // namespace gguf

struct GgufTensor {
  std::string name;
  std::vector<uint64_t> sizes;  // innermost first, as in the file
  uint32_t type = gguf::type_f32;
  std::string data;
  // What the file says where that is not the truth.
  std::optional<uint32_t> rank = {};
  std::optional<uint64_t> offset = {};
};

// Writes GGUF files, right ones and, through the optional members, wrong ones.
struct GgufBuilder {
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; `general.alignment` is not added by itself
  std::optional<uint64_t> tensor_count = {};
  std::optional<uint64_t> value_count = {};
  std::vector<std::pair<std::string, std::string>> values = {};  // key, bytes of type and value
  std::vector<GgufTensor> tensors = {};

  GgufBuilder& add_raw(std::string key, uint32_t type, const std::string& bytes);
  GgufBuilder& add_u32(std::string key, uint32_t value);
  GgufBuilder& add_f32(std::string key, float value);
  GgufBuilder& add_bool(std::string key, bool value);
  GgufBuilder& add_text(std::string key, std::string_view value);
  GgufBuilder& add_texts(std::string key, std::span<const std::string> values);
  GgufBuilder& add_i32s(std::string key, std::span<const int32_t> values);
  // Replaces a value of the same key, or removes it.
  GgufBuilder& replace_raw(const std::string& key, uint32_t type, const std::string& bytes);
  GgufBuilder& remove(const std::string& key);
  [[nodiscard]] GgufTensor& tensor(std::string_view name);

  // The header: everything up to the padding before the data.
  [[nodiscard]] std::string header() const;
  [[nodiscard]] std::string build() const;
};

// The bytes of an array: type of the elements, count, elements.
[[nodiscard]] std::string array_bytes(uint32_t type, uint64_t count, std::string_view elements);

// A file of about 1 KB with one value of every kind, arrays, and three tensors.
[[nodiscard]] GgufBuilder small_gguf();

}  // namespace regard::test
