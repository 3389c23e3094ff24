#pragma once

#include <memory>

#include "regard/threads.h"

namespace regard {

/// Threads, and the memory that calls reuse: it grows to what the largest call needs and stays, so that steady calls
/// allocate nothing. One workspace serves any number of layers, one call at a time.
class Workspace {
 public:
  /// `threads` as for Threads: 0 takes one per core.
  explicit Workspace(int threads = 0);
  Workspace(Workspace&&) noexcept;
  Workspace& operator=(Workspace&&) noexcept;
  ~Workspace();

  [[nodiscard]] const Threads& threads() const { return threads_; }

  /// The memory; for the library's own use.
  struct Memory;
  [[nodiscard]] Memory& memory() { return *memory_; }

 private:
  Threads threads_;
  std::unique_ptr<Memory> memory_;
};

}  // namespace regard
