#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/panel.h"

// Single elements of a page's panels, as bits: for copies of tokens that need no arithmetic.
namespace regard::kernels {

/// What a panel holds for each token: a key, whose elements lie apart, or a value, whose elements lie side by side.
enum class PanelSide : uint8_t { keys, values };

/// One head's panel in a page.
class PanelElements {
 public:
  PanelElements(PanelSide side, PanelType type, std::byte* data, int64_t page_tokens, int64_t width)
      : side_(side),
        row_bytes_(info_of(type).bytes_per_two_k / 2),
        halves_(row_bytes_ < kTile),
        data_(data),
        page_tokens_(page_tokens),
        width_(width) {}

  /// Bytes of an element's bits; a 4-bit one takes a byte of its own.
  [[nodiscard]] int64_t bytes() const { return halves_ ? 1 : row_bytes_ / kTile; }
  [[nodiscard]] int64_t width() const { return width_; }

  void get(int64_t token, int64_t column, std::byte* out) const {
    const int64_t index = index_of(token, column);
    if (halves_)
      *out = (half_at(index) >> shift_of(index)) & std::byte{0xF};
    else
      std::memcpy(out, data_ + index * bytes(), static_cast<size_t>(bytes()));
  }
  void put(const std::byte* bits, int64_t token, int64_t column) const {
    const int64_t index = index_of(token, column);
    if (halves_)
      half_at(index) = (half_at(index) & ~(std::byte{0xF} << shift_of(index))) | (*bits << shift_of(index));
    else
      std::memcpy(data_ + index * bytes(), bits, static_cast<size_t>(bytes()));
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
  [[nodiscard]] int64_t index_of(int64_t token, int64_t column) const {
    return side_ == PanelSide::keys ? (token / kTile * width_ + column) * kTile + token % kTile
                                    : (column / kTile * page_tokens_ + token) * kTile + column % kTile;
  }
  // Of a row's sixteen 4-bit elements, the first eight are the low halves of its bytes.
  [[nodiscard]] std::byte& half_at(int64_t index) const {
    return data_[index / kTile * row_bytes_ + index % (kTile / 2)];
  }
  static int shift_of(int64_t index) { return index % kTile < kTile / 2 ? 0 : 4; }

  PanelSide side_;
  int64_t row_bytes_;
  bool halves_;
  std::byte* data_;
  int64_t page_tokens_;
  int64_t width_;
};

}  // namespace regard::kernels
