#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attend.h"
#include "kernels/cache_rows.h"
#include "kernels/panel_elements.h"
#include "regard/cache.h"

namespace regard {

// The keys, or the values, of all pages of a cache.
class PageStore {
 public:
  struct Sizes {
    int64_t pages = 0;
    int64_t page_tokens = 0;
    int64_t kv_heads = 0;
    int64_t width = 0;  // head_dim or v_head_dim
  };

  // Throws Error for a format that can't be.
  PageStore(kernels::PanelSide side, KvFormat format, const Sizes& sizes);

  [[nodiscard]] const KvFormat& format() const { return format_; }
  [[nodiscard]] int64_t bytes_per_token() const;
  [[nodiscard]] kernels::KvPanels view() const;

  // Stores one head's rows as tokens token.. of a page; all lie in one tile.
  void store(const kernels::TokenRows& rows, int32_t page, int64_t head, int64_t token);
  // A token as f32: `width` numbers.
  void load(int32_t page, int64_t head, int64_t token, float* out) const;

  void copy_page(int32_t from, int32_t to);
  // The token of all heads, as it is stored.
  void copy_token(int32_t from, int64_t from_token, int32_t to, int64_t to_token);

  // A token of a head as stored: bytes_of_row() bytes, and its scale where the type has one.
  [[nodiscard]] int64_t bytes_of_row() const;
  [[nodiscard]] bool has_scales() const { return scales_.size() > 0; }
  void load_stored(int32_t page, int64_t head, int64_t token, std::byte* row, float* scale) const;
  void store_stored(const std::byte* row, const float* scale, int32_t page, int64_t head, int64_t token);

  // Both together: the row, then the scale.
  [[nodiscard]] int64_t stored_bytes() const {
    return bytes_of_row() + (has_scales() ? static_cast<int64_t>(sizeof(float)) : 0);
  }
  void get_stored(int32_t page, int64_t head, int64_t token, std::byte* to) const;
  void put_stored(const std::byte* from, int32_t page, int64_t head, int64_t token);

  [[nodiscard]] kernels::HeadPanel panel(int32_t page, int64_t head) const;

 private:
  [[nodiscard]] kernels::PanelElements elements(int32_t page, int64_t head) const;

  kernels::PanelSide side_;
  KvFormat format_;
  Sizes sizes_;
  int64_t panel_bytes_ = 0;     // of one head in a page
  std::vector<float> factors_;  // given scales, as [kv_heads][width] padded to whole tiles; empty: none
  // A head's panels lie together, and a page's panels of other heads elsewhere: pages that a sequence took one after
  // the other are one stream to whoever reads a head (measured: a sixth of the time of decoding from short pages).
  Buffer data_;    // [kv_heads][pages] panels
  Buffer scales_;  // [kv_heads][pages][page_tokens]; empty: the type has none
};

}  // namespace regard
