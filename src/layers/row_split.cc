#include "layers/row_split.h"

#include <span>

namespace regard {

void gather_split_rows(const Ranks& ranks, const RowSplit& split, ConstTensorView own, TensorView all) {
  const int64_t row_bytes = all.size(1) * static_cast<int64_t>(sizeof(float));
  std::vector<std::span<std::byte>> parts;
  for (const ElementRange& range : split.ranges)
    parts.emplace_back(all.data() + range.first * row_bytes, static_cast<size_t>(range.count * row_bytes));
  ranks.world().all_gather({own.data(), static_cast<size_t>(split.own().count * row_bytes)}, parts);
}

}  // namespace regard
