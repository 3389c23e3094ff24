#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/panel.h"

// Single elements of a page's panels, as bits: for copies of tokens that need no arithmetic.
namespace regard::kernels {

/// What a panel holds for each token: a key, whose elements lie apart, or a value, whose elements lie side by side.
enum class PanelSide : uint8_t { keys, values };

/// A panel's row: sixteen elements side by side, each of as many bytes; or of half a byte, then the first eight are the
/// low halves of the bytes. An element's bits take bytes_of_element(row_bytes) bytes outside of it.
[[nodiscard]] constexpr int64_t bytes_of_element(int64_t row_bytes) {
  return row_bytes < kTile ? 1 : row_bytes / kTile;
}

inline void get_element(const std::byte* row, int64_t row_bytes, int64_t lane, std::byte* bits) {
  constexpr int64_t kHalf = kTile / 2;
  if (row_bytes < kTile)
    *bits = (row[lane % kHalf] >> (lane < kHalf ? 0 : 4)) & std::byte{0xF};
  else
    std::memcpy(bits, row + lane * bytes_of_element(row_bytes), static_cast<size_t>(bytes_of_element(row_bytes)));
}

inline void put_element(const std::byte* bits, std::byte* row, int64_t row_bytes, int64_t lane) {
  constexpr int64_t kHalf = kTile / 2;
  if (row_bytes >= kTile) {
    std::memcpy(row + lane * bytes_of_element(row_bytes), bits, static_cast<size_t>(bytes_of_element(row_bytes)));
    return;
  }
  const int shift = lane < kHalf ? 0 : 4;
  std::byte& both = row[lane % kHalf];
  both = (both & ~(std::byte{0xF} << shift)) | (*bits << shift);
}

/// One head's panel in a page.
class PanelElements {
 public:
  PanelElements(PanelSide side, PanelType type, std::byte* data, int64_t page_tokens, int64_t width)
      : side_(side),
        row_bytes_(info_of(type).bytes_per_two_k / 2),
        data_(data),
        page_tokens_(page_tokens),
        width_(width) {}

  [[nodiscard]] int64_t bytes() const { return bytes_of_element(row_bytes_); }

  void get(int64_t token, int64_t column, std::byte* bits) const {
    get_element(row_of(token, column), row_bytes_, lane_of(token, column), bits);
  }
  void put(const std::byte* bits, int64_t token, int64_t column) const {
    put_element(bits, row_of(token, column), row_bytes_, lane_of(token, column));
  }
  /// All elements of a token, side by side.
  void get_token(int64_t token, std::byte* bits) const {
    const bool done = for_each_stretch(token, [&](std::byte* at, int64_t column, int64_t count, int64_t step) {
      copy_elements(at, step, bits + column * bytes(), bytes(), count);
    });
    for (int64_t column = 0; column < width_ && !done; ++column) get(token, column, bits + column * bytes());
  }
  void put_token(const std::byte* bits, int64_t token) const {
    const bool done = for_each_stretch(token, [&](std::byte* at, int64_t column, int64_t count, int64_t step) {
      copy_elements(bits + column * bytes(), bytes(), at, step, count);
    });
    for (int64_t column = 0; column < width_ && !done; ++column) put(bits + column * bytes(), token, column);
  }
  void copy_token(const PanelElements& from, int64_t from_token, int64_t to_token) const {
    std::byte bits[sizeof(float)];
    for (int64_t column = 0; column < width_; ++column) {
      from.get(from_token, column, bits);
      put(bits, to_token, column);
    }
  }
  /// The sixteen tokens of a tile.
  void copy_tile(const PanelElements& from, int64_t from_tile, int64_t to_tile) const {
    const int64_t keys_bytes = width_ * row_bytes_;
    if (side_ == PanelSide::keys) {
      std::memcpy(data_ + to_tile * keys_bytes, from.data_ + from_tile * keys_bytes, static_cast<size_t>(keys_bytes));
      return;
    }
    for (int64_t tile = 0; tile < tiles(width_); ++tile)
      std::memcpy(data_ + (tile * page_tokens_ + to_tile * kTile) * row_bytes_,
                  from.data_ + (tile * from.page_tokens_ + from_tile * kTile) * row_bytes_,
                  static_cast<size_t>(kTile * row_bytes_));
  }

 private:
  // Calls visit(address, first column, count, bytes from one element to the next) for a token's elements that lie at
  // even distances. Returns false where elements are halves of bytes.
  template <class Visit>
  [[nodiscard]] bool for_each_stretch(int64_t token, Visit visit) const {
    if (row_bytes_ < kTile) return false;
    const int64_t stretch = side_ == PanelSide::keys ? width_ : kTile;
    for (int64_t column = 0; column < width_; column += stretch)
      visit(row_of(token, column) + lane_of(token, column) * bytes(), column, std::min(stretch, width_ - column),
            side_ == PanelSide::keys ? row_bytes_ : bytes());
    return true;
  }
  void copy_elements(const std::byte* from, int64_t from_step, std::byte* to, int64_t to_step, int64_t count) const {
    const auto copy = [&]<class Bits>(Bits bits) {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(&bits, from + i * from_step, sizeof(Bits));
        std::memcpy(to + i * to_step, &bits, sizeof(Bits));
      }
    };
    if (bytes() == 4) return copy(uint32_t{});
    if (bytes() == 2) return copy(uint16_t{});
    copy(uint8_t{});
  }
  [[nodiscard]] std::byte* row_of(int64_t token, int64_t column) const {
    const int64_t row =
        side_ == PanelSide::keys ? token / kTile * width_ + column : column / kTile * page_tokens_ + token;
    return data_ + row * row_bytes_;
  }
  [[nodiscard]] int64_t lane_of(int64_t token, int64_t column) const {
    return (side_ == PanelSide::keys ? token : column) % kTile;
  }

  PanelSide side_;
  int64_t row_bytes_;
  std::byte* data_;
  int64_t page_tokens_;
  int64_t width_;
};

}  // namespace regard::kernels
