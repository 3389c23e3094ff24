#pragma once

#include <span>
#include <string>
#include <utility>

#include "regard/communicator.h"

namespace regard {

/// Makes sure that all ranks mean the same before they begin: each passes what it was told, as names with values, e.g.
/// its version, its configuration and the digest of its checkpoint. Collective. Where any rank has another value than
/// rank 0, or another field, all ranks throw the same Error: it names the first such field, the two values and ranks.
void check_agreement(Communicator& group, std::span<const std::pair<std::string, std::string>> fields);

}  // namespace regard
