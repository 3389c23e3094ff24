#pragma once

#include <cstdint>

namespace regard {

// For as long as it lives, the thread computes as bits are promised for: rounding to nearest, denormal numbers kept, no
// traps. Then the thread has the environment again that it had before, its status flags included.
class FloatEnvironment {
 public:
  FloatEnvironment();
  ~FloatEnvironment();
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

  // Gives the calling thread that environment for good.
  static void set_default();

 private:
  uint64_t callers_;
};

}  // namespace regard
