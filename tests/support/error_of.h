#pragma once

#include <string>

#include "regard/error.h"

namespace regard::test {

/// The sentence of the Error that `work` throws; empty if it throws none.
template <class Work>
std::string error_of(Work&& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace regard::test
