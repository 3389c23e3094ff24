#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace regard {

// Finds which of many texts a text begins with. The texts live elsewhere, longer than the index.
class PrefixIndex {
 public:
  // A text, not empty, and the number that stands for it; of equal texts the first counts.
  using Entry = std::pair<std::string_view, int32_t>;

  PrefixIndex() : PrefixIndex(std::vector<Entry>()) {}
  explicit PrefixIndex(std::vector<Entry> entries) : entries_(std::move(entries)) {
    const auto text_of = [](const Entry& entry) { return entry.first; };
    std::ranges::stable_sort(entries_, {}, text_of);
    const auto twice = [](const Entry& a, const Entry& b) { return a.first == b.first; };
    entries_.erase(std::unique(entries_.begin(), entries_.end(), twice), entries_.end());
    size_t next = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
      while (next < entries_.size() && byte_at(next, 0) < byte) ++next;
      first_[byte] = next;
    }
    first_[256] = entries_.size();
  }

  // Calls found(length, number) for each of the texts that `text` begins with, the shortest first. Takes time in
  // proportion to the longest of them.
  template <class Found>
  void find(std::string_view text, Found found) const {
    if (text.empty()) return;
    const auto byte = static_cast<uint8_t>(text[0]);
    size_t low = first_[byte];
    size_t high = first_[byte + 1U];
    // All of low..high-1 begin with the text's first `length` bytes.
    for (size_t length = 1; low < high; ++length) {
      if (entries_[low].first.size() == length) found(length, entries_[low++].second);
      if (length == text.size()) return;
      const auto next = static_cast<uint8_t>(text[length]);
      const auto begin = entries_.begin();
      const auto below = [&](uint32_t limit) {
        return static_cast<size_t>(
            std::partition_point(
                begin + static_cast<std::ptrdiff_t>(low), begin + static_cast<std::ptrdiff_t>(high),
                [&](const Entry& entry) { return static_cast<uint8_t>(entry.first[length]) < limit; }) -
            begin);
      };
      high = below(next + 1U);
      low = below(next);
    }
  }

 private:
  [[nodiscard]] uint8_t byte_at(size_t entry, size_t at) const {
    return static_cast<uint8_t>(entries_[entry].first[at]);
  }

  std::vector<Entry> entries_;       // sorted by bytes
  std::array<size_t, 257> first_{};  // of the entries that begin with a byte or a greater one
};

}  // namespace regard
