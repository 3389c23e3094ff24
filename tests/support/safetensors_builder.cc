#include "support/safetensors_builder.h"

#include <fmt/ranges.h>

#include "support/byte_writer.h"

namespace regard::test {

std::string safetensors_bytes(std::string_view header, std::string_view data) {
  return bytes_of(uint64_t{header.size()}).append(header).append(data);
}

std::string safetensors_bytes(const std::vector<SafeTensor>& tensors) {
  std::string header = "{";
  std::string data;
  for (const SafeTensor& tensor : tensors) {
    if (header.size() > 1) header += ",";
    header += fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", tensor.name, tensor.dtype,
                          fmt::join(tensor.shape, ","), data.size(), data.size() + tensor.data.size());
    data += tensor.data;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return safetensors_bytes(header, data);
}

}  // namespace regard::test
