#include "parallel/same_values.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "tensor/checksum.h"
#include "tensor/fail.h"

namespace regard {

void require_same(std::string_view what, std::span<const std::string> values) {
  if (std::ranges::all_of(values, [&](const std::string& value) { return value == values.front(); })) return;
  std::vector<std::string> named;
  for (size_t first = 0; first < values.size(); ++first) {
    if (std::ranges::find(values.first(first), values[first]) != values.begin() + static_cast<int64_t>(first)) continue;
    std::vector<size_t> ranks;
    for (size_t rank = first; rank < values.size(); ++rank)
      if (values[rank] == values[first]) ranks.push_back(rank);
    named.push_back(
        fmt::format("{} on {} {}", values[first], ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", ")));
  }
  fail("ranks disagree: {} is {}, expected the same; do all read the same files? --verify compares them whole", what,
       fmt::join(named, ", "));
}

void require_same_bytes(Communicator& group, std::string_view what, std::span<const std::byte> bytes) {
  if (group.size() == 1) return;
  std::vector<std::string> values;
  for (const uint64_t sum : group.gather(checksum(bytes))) values.push_back(fmt::format("{:016x}", sum));
  require_same(what, values);
}

}  // namespace regard
