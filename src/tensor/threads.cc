#include "regard/threads.h"

#include <omp.h>

#include "tensor/fail.h"

namespace regard {

Threads::Threads(int count) : count_(count == 0 ? omp_get_num_procs() : count) {
  require(count >= 0, "threads is {}, expected 0 (one per core) or more", count);
}

void Threads::run(int64_t tasks, Call call, void* callable) const {
  if (count_ == 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) call(callable, task, 0);
    return;
  }
#pragma omp parallel num_threads(count_)
  {
    const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) call(callable, task, thread);
  }
}

}  // namespace regard
