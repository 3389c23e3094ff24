#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "regard/checkpoint.h"

namespace regard {

using Metadata = std::map<std::string, MetaValue, std::less<>>;

// What a checkpoint file holds; the tensors point into its bytes.
struct ParsedFile {
  std::vector<StoredTensor> tensors;
  Metadata metadata;                           // GGUF
  std::map<std::string, std::string> strings;  // safetensors' __metadata__
};

// Both read untrusted bytes: every offset, length, count and shape is checked before use, and memory is only asked for
// what the file's own size can fill. `name` is the file's, for messages. Throw Error.
[[nodiscard]] ParsedFile parse_gguf(std::span<const std::byte> file, std::string_view name);
[[nodiscard]] ParsedFile parse_safetensors(std::span<const std::byte> file, std::string_view name);

// A tensor as a matrix: the last axis is the row, all others are folded. A scalar or a vector has one row.
struct FoldedShape {
  int64_t rows = 1;
  int64_t columns = 1;
};
[[nodiscard]] FoldedShape folded(const Shape& shape);

// A GGUF file of key-values, without tensors. Integers become i64, numbers f64.
[[nodiscard]] std::string gguf_of(const Metadata& metadata);

// Throws Error unless no two tensors share a byte and, where `gapless`, no byte of the data section is unused.
void check_layout(const ParsedFile& parsed, std::span<const std::byte> data, bool gapless, std::string_view name);

}  // namespace regard
