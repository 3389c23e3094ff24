#pragma once

#include <cstdint>
#include <string_view>

namespace regard {

/// How query and KV heads are laid out over ranks [PROJ-1].
enum class GQA : uint8_t {
  REPLICATE_TO_TP_DEGREE,  ///< One copy of a KV head a rank; query heads padded inside each KV group.
  CONVERT_TO_MHA,          ///< Every query head gets a KV head of its own; padding at the tail.
};
[[nodiscard]] std::string_view name_of(GQA strategy);

}  // namespace regard
