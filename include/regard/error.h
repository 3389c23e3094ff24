#pragma once

#include <stdexcept>

namespace regard {

/// Bad input: one sentence that names the parameter, its value and what was expected. Thread safety: a value.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace regard
