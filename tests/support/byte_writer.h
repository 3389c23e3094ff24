#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace regard::test {

// Bytes of a file under construction; numbers are little-endian, as on every machine that the tests run on.
static_assert(std::endian::native == std::endian::little);

template <class T>
[[nodiscard]] std::string bytes_of(T number) requires std::is_arithmetic_v<T> {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &number, sizeof(T));
  return bytes;
}

// GGUF's strings: u64 length, then the bytes.
[[nodiscard]] inline std::string bytes_of(std::string_view text) {
  return bytes_of(uint64_t{text.size()}) + std::string(text);
}

[[nodiscard]] inline std::span<const std::byte> as_bytes(std::string_view bytes) {
  return std::as_bytes(std::span(bytes.data(), bytes.size()));
}

}  // namespace regard::test
