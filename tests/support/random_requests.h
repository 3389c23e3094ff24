#pragma once

#include <cstdint>
#include <vector>

#include "regard/generation.h"
#include "support/random.h"

namespace regard::test {

// Tokens of a tiny model's vocabulary.
std::vector<int32_t> random_tokens(Random& random, int64_t count);

// A request of any kind, but for callbacks. Its prompt often begins with some of the common tokens, of which there are
// 100 at least; it generates at most `most_tokens`.
GenerationRequest random_request(Random& random, const std::vector<int32_t>& common, int64_t most_tokens);

}  // namespace regard::test
