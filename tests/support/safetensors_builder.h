#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace regard::test {

struct SafeTensor {
  std::string name;
  std::string dtype;  // as in the file: "F32", "BF16", ...
  std::vector<int64_t> shape;
  std::string data;
};

// A safetensors file of any header, right or wrong.
[[nodiscard]] std::string safetensors_bytes(std::string_view header, std::string_view data);
// A right one; the header is padded to a multiple of eight bytes.
[[nodiscard]] std::string safetensors_bytes(const std::vector<SafeTensor>& tensors);

}  // namespace regard::test
