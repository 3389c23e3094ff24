#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "regard/model_spec.h"
#include "tensor/fail.h"

namespace regard {

// Throws Error for fewer tokens than `least`, or more than the model's context holds; `what` are these tokens.
inline void check_length(std::string_view what, size_t tokens, int64_t least, const ModelSpec& spec) {
  const int64_t context = spec.context_length;
  require(static_cast<int64_t>(tokens) >= least && static_cast<int64_t>(tokens) <= context,
          "{} has {} tokens, expected {} to {} (the model's context)", what, tokens, least, context);
}

// Throws Error for ids outside the model's vocabulary; `what` is such an id.
inline void check_ids(std::string_view what, std::span<const int32_t> tokens, const ModelSpec& spec) {
  const int64_t vocabulary = spec.vocab_size;
  for (const int32_t token : tokens)
    require(token >= 0 && token < vocabulary, "{} is {}, expected 0 to {}", what, token, vocabulary - 1);
}

}  // namespace regard
