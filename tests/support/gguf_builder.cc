#include "support/gguf_builder.h"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "support/byte_writer.h"

namespace regard::test {
namespace {

uint64_t padded(uint64_t size, uint64_t alignment) { return (size + alignment - 1) / alignment * alignment; }

}  // namespace

std::string array_bytes(uint32_t type, uint64_t count, std::string_view elements) {
  return bytes_of(type) + bytes_of(count) + std::string(elements);
}

GgufBuilder& GgufBuilder::add_raw(std::string key, uint32_t type, const std::string& bytes) {
  values.emplace_back(std::move(key), bytes_of(type) + bytes);
  return *this;
}

GgufBuilder& GgufBuilder::add_u32(std::string key, uint32_t value) {
  return add_raw(std::move(key), gguf::u32, bytes_of(value));
}

GgufBuilder& GgufBuilder::add_f32(std::string key, float value) {
  return add_raw(std::move(key), gguf::f32, bytes_of(value));
}

GgufBuilder& GgufBuilder::add_bool(std::string key, bool value) {
  return add_raw(std::move(key), gguf::boolean, bytes_of(value));
}

GgufBuilder& GgufBuilder::add_text(std::string key, std::string_view value) {
  return add_raw(std::move(key), gguf::string, bytes_of(value));
}

GgufBuilder& GgufBuilder::add_texts(std::string key, std::span<const std::string> texts) {
  std::string elements;
  for (const std::string& text : texts) elements += bytes_of(text);
  return add_raw(std::move(key), gguf::array, array_bytes(gguf::string, texts.size(), elements));
}

GgufBuilder& GgufBuilder::add_i32s(std::string key, std::span<const int32_t> numbers) {
  std::string elements;
  for (const int32_t number : numbers) elements += bytes_of(number);
  return add_raw(std::move(key), gguf::array, array_bytes(gguf::i32, numbers.size(), elements));
}

GgufBuilder& GgufBuilder::replace_raw(const std::string& key, uint32_t type, const std::string& bytes) {
  return remove(key).add_raw(key, type, bytes);
}

GgufBuilder& GgufBuilder::remove(const std::string& key) {
  std::erase_if(values, [&](const auto& value) { return value.first == key; });
  return *this;
}

GgufTensor& GgufBuilder::tensor(std::string_view name) {
  const auto found = std::ranges::find(tensors, name, &GgufTensor::name);
  if (found == tensors.end()) throw std::out_of_range("no such tensor");
  return *found;
}

std::string GgufBuilder::header() const {
  std::string bytes = magic + bytes_of(version) + bytes_of(tensor_count.value_or(tensors.size())) +
                      bytes_of(value_count.value_or(values.size()));
  for (const auto& [key, value] : values) bytes += bytes_of(key) + value;
  uint64_t offset = 0;
  for (const GgufTensor& tensor : tensors) {
    bytes += bytes_of(tensor.name) + bytes_of(tensor.rank.value_or(static_cast<uint32_t>(tensor.sizes.size())));
    for (const uint64_t size : tensor.sizes) bytes += bytes_of(size);
    bytes += bytes_of(tensor.type) + bytes_of(tensor.offset.value_or(offset));
    offset = padded(offset + tensor.data.size(), alignment);
  }
  return bytes;
}

std::string GgufBuilder::build() const {
  std::string bytes = header();
  for (const GgufTensor& tensor : tensors) {
    bytes.resize(padded(bytes.size(), alignment), '\0');
    bytes += tensor.data;
  }
  return bytes;
}

GgufBuilder small_gguf() {
  GgufBuilder file;
  file.add_text("general.architecture", "test");
  file.add_raw("test.u8", gguf::u8, bytes_of(uint8_t{200}));
  file.add_raw("test.i8", gguf::i8, bytes_of(int8_t{-100}));
  file.add_raw("test.u16", gguf::u16, bytes_of(uint16_t{60000}));
  file.add_raw("test.i16", gguf::i16, bytes_of(int16_t{-30000}));
  file.add_u32("test.u32", 4'000'000'000U);
  file.add_raw("test.i32", gguf::i32, bytes_of(int32_t{-2'000'000'000}));
  file.add_f32("test.f32", 0.25F);
  file.add_bool("test.bool", true);
  file.add_raw("test.u64", gguf::u64, bytes_of(uint64_t{1} << 62));
  file.add_raw("test.i64", gguf::i64, bytes_of(int64_t{-1} << 62));
  file.add_raw("test.f64", gguf::f64, bytes_of(-0.125));
  file.add_texts("test.texts", std::array<std::string, 3>{"a", "", "bc"});
  file.add_i32s("test.numbers", std::array<int32_t, 2>{-1, 7});
  file.add_raw("test.floats", gguf::array, array_bytes(gguf::f32, 1, bytes_of(1.5F)));
  file.add_raw("test.bools", gguf::array, array_bytes(gguf::boolean, 2, std::string("\1\0", 2)));
  file.tensors.push_back({.name = "matrix", .sizes = {4, 3}, .data = std::string(48, '\1')});
  file.tensors.push_back({.name = "blocks", .sizes = {32, 2}, .type = gguf::type_q8_0, .data = std::string(68, '\2')});
  file.tensors.push_back({.name = "scalar", .sizes = {1}, .type = gguf::type_f16, .data = std::string(2, '\3')});
  return file;
}

}  // namespace regard::test
