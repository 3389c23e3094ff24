#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/panel.h"
#include "regard/dtype.h"

// How tokens get into the panels of a cache, and out again.
namespace regard::kernels {

/// Whether each token of each head has a scale of its own: the types of 8 and 4 bits. The element of largest magnitude
/// then becomes the type's number of largest magnitude: -8 for i4, whose scale therefore has the other sign.
[[nodiscard]] constexpr bool has_token_scales(DType dtype) {
  return dtype == DType::i8 || dtype == DType::i4 || dtype == DType::f8_e4m3 || dtype == DType::f8_e5m2;
}

/// What a cache may hold.
[[nodiscard]] constexpr bool is_cache_type(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16 || has_token_scales(dtype);
}
[[nodiscard]] PanelType panel_type_of_cache(DType dtype);
/// Bytes of kTile elements side by side, a row of a panel.
[[nodiscard]] inline int64_t row_bytes_of_cache(DType dtype) {
  return info_of(panel_type_of_cache(dtype)).bytes_per_two_k / 2;
}

/// The largest number of a type with scales.
[[nodiscard]] constexpr float largest_of_cache(DType dtype) {
  switch (dtype) {
    case DType::i8:
      return 127.0F;
    case DType::i4:
      return 7.0F;
    case DType::f8_e4m3:
      return 448.0F;
    default:
      return 57344.0F;
  }
}

/// One head's rows of some tokens, f32.
struct TokenRows {
  const float* data = nullptr;
  int64_t stride = 0;  ///< Floats from one token to the next.
  int64_t count = 0;   ///< Tokens.
  int64_t width = 0;   ///< head_dim or v_head_dim
};

/// One head's panel in a page, and the scales of the page's tokens (null: the type has none). A token with an infinite
/// or NaN element has the scale NaN.
struct HeadPanel {
  std::byte* data = nullptr;
  float* scales = nullptr;
  DType dtype = DType::f32;
  int64_t page_tokens = 0;
  /// The rows come divided by scales that somebody else knows, and are cut off at the type's limits [KV-42]; a token's
  /// own scale only tells NaN.
  bool given_scales = false;
};

/// Writes keys into a panel [page_tokens/16][head_dim][16], as tokens token.. of the page; all lie in one tile. What
/// is written does not depend on how many come together.
void store_keys(const TokenRows& rows, int64_t token, const HeadPanel& panel);
/// The same for values, into a panel [v_head_dim/16][page_tokens][16].
void store_values(const TokenRows& rows, int64_t token, const HeadPanel& panel);

/// One token's key, or value, as f32: `width` numbers.
void load_key(const HeadPanel& panel, int64_t token, int64_t width, float* out);
void load_value(const HeadPanel& panel, int64_t token, int64_t width, float* out);

}  // namespace regard::kernels
