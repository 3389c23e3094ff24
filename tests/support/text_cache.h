#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "regard/model_cache.h"

// Caches filled as a model fills them: a token's key and value follow from all tokens up to it.
namespace regard::test {

// Appends the last token of a text to all layers, which have one KV head of 4.
void append_token(ModelCache& cache, int64_t slot, int64_t position, std::span<const int32_t> text);
// Appends the part of the text that the slot does not hold yet, at most `at_once` tokens a call, with a commit after
// each; false where there is no room.
[[nodiscard]] bool run_text(ModelCache& cache, int64_t slot, std::span<const int32_t> text, int64_t at_once);
// What is wrong, if not every layer holds what the token after this text sees, with what the text gives.
[[nodiscard]] std::optional<std::string> wrong_contents(ModelCache& cache, int64_t slot, std::span<const int32_t> text);
// The number that the last token of a text gives in a layer.
[[nodiscard]] float number_of(std::span<const int32_t> text, size_t layer);

}  // namespace regard::test
