#include "regard/threads.h"

#include <sched.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "tensor/fail.h"
#include "tensor/float_environment.h"

namespace regard {
namespace {

int available_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) == 0) return CPU_COUNT(&cores);
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

// Why not OpenMP: a token takes some 200 steps of work, and at the end of each OpenMP waits for every thread of its
// team, also for those that the operating system has taken off their cores. Here the caller waits only for tasks that
// somebody has begun; a thread that is not running is not missed. A step also costs less (docs/kernels.md).
class Threads::Team {
 public:
  explicit Team(int count) : count_(count) {}
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  ~Team() {
    ending_ = true;
    wake();
    for (std::thread& helper : helpers_) helper.join();
  }

  void run(int64_t tasks, Call call, void* callable) {
    const std::unique_lock lock(busy_, std::try_to_lock);
    if (!lock.owns_lock()) {
      for (int64_t task = 0; task < tasks; ++task) call(callable, task, 0);
      return;
    }
    if (helpers_.empty())
      for (int thread = 1; thread < count_; ++thread) helpers_.emplace_back([this, thread] { help(thread); });
    job_ = {.call = call, .callable = callable, .tasks = tasks};
    done_.store(0, std::memory_order_relaxed);
    open_.store(tasks);
    wake();
    work(0);
    for (int spins = 0; done_.load(std::memory_order_acquire) != tasks; ++spins) {
      // Whoever has the last task may be waiting for this core.
      if (spins < kSpins)
        relax();
      else
        std::this_thread::yield();
    }
  }

 private:
  struct Job {
    Call call = nullptr;
    void* callable = nullptr;
    int64_t tasks = 0;
  };
  // 49 microseconds on a Zen 4 core: longer than the gaps between the steps of a token.
  static constexpr int kSpins = 2000;

  // Takes tasks until none are left. A task that is taken keeps its job alive: the caller waits for it. So a thread
  // that comes late finds no task, or a task of the next job, which is then the one it reads.
  void work(int thread) {
    int64_t open = open_.load(std::memory_order_acquire);
    while (open != 0) {
      if (!open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      const Job& job = job_;
      job.call(job.callable, job.tasks - open, thread);
      done_.fetch_add(1, std::memory_order_release);
      open = open_.load(std::memory_order_acquire);
    }
  }

  // The helper has the environment of the thread that made it, and that one had its own reasons.
  void help(int thread) {
    FloatEnvironment::set_default();
    int spins = 0;
    while (!ending_) {
      const uint32_t signal = signal_.load();
      if (open_.load(std::memory_order_acquire) != 0) {
        work(thread);
        spins = 0;
      } else if (++spins < kSpins) {
        relax();
      } else {
        ++sleepers_;
        // A task opened since `signal` was read has changed it: then this returns at once.
        if (!ending_ && open_.load() == 0) signal_.wait(signal);
        --sleepers_;
        spins = 0;
      }
    }
  }

  void wake() {
    ++signal_;
    if (sleepers_ > 0) signal_.notify_all();
  }

  const int count_;
  std::mutex busy_;
  std::vector<std::thread> helpers_;
  Job job_;
  // Tasks of the job that nobody has taken yet.
  alignas(64) std::atomic<int64_t> open_ = 0;
  alignas(64) std::atomic<int64_t> done_ = 0;
  alignas(64) std::atomic<uint32_t> signal_ = 0;
  std::atomic<int> sleepers_ = 0;
  std::atomic<bool> ending_ = false;
};

Threads::Threads(int count) : count_(count == 0 ? available_cores() : count) {
  require(count >= 0, "threads is {}, expected 0 (one per core) or more", count);
  if (count_ > 1) team_ = std::make_shared<Team>(count_);
}

Threads Threads::for_work(int64_t operations) const {
  // Some 3 microseconds of one thread; two others would take a third of that to get started and ready.
  constexpr int64_t kSmall = 150'000;
  return operations < kSmall ? Threads(1) : *this;
}

void Threads::run(int64_t tasks, Call call, void* callable) const {
  const FloatEnvironment environment;
  if (team_ != nullptr && tasks > 1) return team_->run(tasks, call, callable);
  for (int64_t task = 0; task < tasks; ++task) call(callable, task, 0);
}

}  // namespace regard
