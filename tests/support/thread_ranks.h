#pragma once

#include <functional>
#include <memory>

#include "regard/communicator.h"

namespace regard::test {

// Runs `work` once for each rank of a group of `count`, as threads of this process, and returns when all have ended.
// No test hangs: where a rank throws, or ends while others wait for it, these get an Error. Rethrows what the first
// rank has thrown.
void run_ranks(int count, const std::function<void(std::shared_ptr<Communicator>)>& work);

}  // namespace regard::test
