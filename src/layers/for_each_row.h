#pragma once

#include <algorithm>
#include <cstdint>

#include "regard/threads.h"

namespace regard {

// Calls work(row, thread) for all rows. A thread takes 16 at a time, so that small calls stay on one thread.
template <class Work>
void for_each_row(int64_t rows, const Threads& threads, Work work) {
  constexpr int64_t kRun = 16;
  threads.for_each((rows + kRun - 1) / kRun, [&](int64_t run, int thread) {
    for (int64_t row = run * kRun; row < std::min((run + 1) * kRun, rows); ++row) work(row, thread);
  });
}

}  // namespace regard
