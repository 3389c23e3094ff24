#pragma once

#include <mpi.h>

#include <string_view>

namespace regard::mpi {

// Throws Error with MPI's own words unless `code`, which `call` has returned, is a success.
void check(int code, std::string_view call);

}  // namespace regard::mpi
