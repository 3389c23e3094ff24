#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace regard {

/// A team of threads that its owner passes to the calls that may use it. Results never depend on its size. Copies share
/// the team; its threads start with the first work that has several tasks, and sleep when there is none.
///
/// Thread safety: several threads may call for_each of one team at once; all but the first then work alone.
class Threads {
 public:
  /// `count` threads, the caller's among them; 0 takes one per available core. Throws Error for a negative count.
  explicit Threads(int count = 0);

  [[nodiscard]] int count() const { return count_; }

  /// The team for this much work, counted in multiply-adds or in numbers touched: the caller alone where others would
  /// wake up too late to help.
  [[nodiscard]] Threads for_work(int64_t operations) const;

  /// Calls `work(task, thread)` once for every task in 0..tasks-1 and returns when all are done; thread is in
  /// 0..count()-1. Idle threads take the next task, in order. `work` must neither throw nor use the same team. Of two
  /// calls at the same time the second runs on its caller's thread alone, as thread 0.
  template <class Work>
  void for_each(int64_t tasks, Work&& work) const {
    using Callable = std::remove_reference_t<Work>;
    run(
        tasks, [](void* callable, int64_t task, int thread) { (*static_cast<Callable*>(callable))(task, thread); },
        const_cast<void*>(static_cast<const void*>(std::addressof(work))));
  }

 private:
  class Team;
  using Call = void (*)(void* callable, int64_t task, int thread);
  void run(int64_t tasks, Call call, void* callable) const;

  int count_;
  std::shared_ptr<Team> team_;  // none for one thread
};

}  // namespace regard
