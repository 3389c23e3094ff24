#pragma once

#include <cstdint>
#include <memory>

#include "regard/threads.h"

namespace regard {

/// Bytes of data cache: of one core, and of the last level, which cores share.
struct CacheSizes {
  int64_t l1 = int64_t{32} << 10;
  int64_t l2 = int64_t{512} << 10;
  int64_t last_level = int64_t{8} << 20;

  /// As the operating system tells (Linux: sysfs); what it does not tell stays as above.
  [[nodiscard]] static const CacheSizes& of_machine();
};

struct WorkspaceOptions {
  int threads = 0;  ///< As for Threads: 0 takes one per core.
  /// Where weights or cached keys and values are bf16, lets the numbers that they are multiplied by (activations,
  /// queries, softmax weights) be rounded to bf16 too; sums stay f32. Twice as fast on machines with AVX512_BF16,
  /// ignored on others: results then depend on the machine, though still not on the schedule.
  bool bf16_products = false;
  CacheSizes caches = CacheSizes::of_machine();  ///< Blocks of work are made to fit; results do not depend on them.
};

/// Threads, and the memory that calls reuse: it grows to what the largest call needs and stays, so that steady calls
/// allocate nothing. One workspace serves any number of layers and models.
///
/// Thread safety: one call at a time uses it; calls at the same time have a workspace each.
class Workspace {
 public:
  explicit Workspace(int threads = 0) : Workspace(WorkspaceOptions{.threads = threads}) {}
  /// Throws Error for a negative number of threads, or cache sizes below 1.
  explicit Workspace(const WorkspaceOptions& options);
  Workspace(Workspace&&) noexcept;
  Workspace& operator=(Workspace&&) noexcept;
  ~Workspace();

  [[nodiscard]] const Threads& threads() const { return threads_; }
  [[nodiscard]] const WorkspaceOptions& options() const { return options_; }

  /// The memory; for the library's own use.
  struct Memory;
  [[nodiscard]] Memory& memory() { return *memory_; }

 private:
  WorkspaceOptions options_;
  Threads threads_;
  std::unique_ptr<Memory> memory_;
};

}  // namespace regard
