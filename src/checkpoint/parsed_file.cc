#include "checkpoint/parsed_file.h"

#include <algorithm>

#include "tensor/fail.h"

namespace regard {

FoldedShape folded(const Shape& shape) {
  FoldedShape matrix;
  for (const int64_t size : shape) {
    matrix.rows *= matrix.columns;
    matrix.columns = size;
  }
  return matrix;
}

void check_layout(const ParsedFile& parsed, std::span<const std::byte> data, bool gapless, std::string_view name) {
  std::vector<const StoredTensor*> order;
  for (const StoredTensor& tensor : parsed.tensors)
    if (!tensor.bytes.empty()) order.push_back(&tensor);
  std::ranges::sort(order, {}, [](const StoredTensor* tensor) { return tensor->bytes.data(); });
  const std::byte* end = data.data();
  for (const StoredTensor* tensor : order) {
    require(tensor->bytes.data() >= end, "checkpoint: {}: tensor \"{}\" overlaps another tensor", name,
            printable(tensor->name));
    require(!gapless || tensor->bytes.data() == end, "checkpoint: {}: there are {} unused bytes before tensor \"{}\"",
            name, tensor->bytes.data() - end, printable(tensor->name));
    end = tensor->bytes.data() + tensor->bytes.size();
  }
  require(!gapless || end == data.data() + data.size(),
          "checkpoint: {}: there are {} unused bytes after the last tensor", name, data.data() + data.size() - end);
}

}  // namespace regard
