#pragma once

#include <string_view>

#include "text/normalizer.h"

namespace regard {

namespace normalizers {

// The table of replacements that SentencePiece compiles its rules into (precompiled_charsmap): the bytes of a trie (a
// double array of darts-clone) with their number before them, then the replacements, each with a NUL behind it.
// Applied as `tokenizers` does: to whole grapheme clusters of up to 5 bytes, else to each character.
// Throws Error for a table that is cut off.
[[nodiscard]] Normalizer::Step charsmap(std::string_view table);

}  // namespace normalizers

// The bytes of a base64 text. Throws Error if it is none.
[[nodiscard]] std::string bytes_of_base64(std::string_view text);

}  // namespace regard
