#pragma once

#include <string>

#include "regard/checkpoint.h"

namespace regard::cli {

// Throws Error where an output, also by way of a link, is a file that a checkpoint is read from. `option` names it.
void check_output(const Checkpoint& checkpoint, const char* option, const std::string& output);

}  // namespace regard::cli
