#pragma once

namespace regard::test {

// Sanitizers slow a test down up to tenfold, and look at accesses rather than at numbers: with them, fewer cases do.
#ifdef REGARD_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace regard::test
