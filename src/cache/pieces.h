#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace regard {

// A place among a call's packed tokens: behind whole runs, and some tokens of the next one.
struct TokenCursor {
  size_t run = 0;
  int64_t tokens = 0;
};

// Moves the cursor over the next piece of a call's tokens and returns how many these are: `most`, or what is left. The
// tokens of a prefix see each other, so that all have to be in the cache before one of them attends: a piece ends
// before a prefix that it would cut, and is longer than `most` where a prefix is. `runs` have a `count` and a `prefix`.
template <class Runs>
int64_t next_piece(const Runs& runs, int64_t most, TokenCursor& at) {
  int64_t tokens = 0;
  while (at.run < runs.size() && tokens < most) {
    const auto& run = runs[at.run];
    int64_t count = std::min(most - tokens, run.count - at.tokens);
    if (at.tokens + count < run.prefix) {
      if (tokens > 0) break;
      count = run.prefix;
    }
    tokens += count;
    at.tokens += count;
    if (at.tokens == run.count) at = {.run = at.run + 1, .tokens = 0};
  }
  return tokens;
}

}  // namespace regard
