#pragma once

#include <cstddef>

#include "tensor/fail.h"

namespace regard::jinja {

// What one rendering may cost, so that a hostile template ends soon and in little memory. Each node that is evaluated,
// each element that is touched and each 64 bytes that are copied or searched are a step: at most some 0.3 GB of text
// and a second or two. A conversation of a thousand messages takes about 1 % of it.
class Budget {
 public:
  static constexpr size_t kSteps = 4'000'000;
  static constexpr size_t kBytesPerStep = 64;

  void spend(size_t steps = 1) {
    require(steps <= left_, "the template takes more than {} steps", kSteps);
    left_ -= steps;
  }
  void spend_bytes(size_t bytes) { spend(bytes / kBytesPerStep); }

 private:
  size_t left_ = kSteps;
};

}  // namespace regard::jinja
