#pragma once

#include <memory>
#include <string_view>

#include "regard/communicator.h"

/// Ranks as processes that an MPI launcher has started: library regard::mpi, which is built where MPI is found.
namespace regard::mpi {

/// Whether a launcher such as mpirun has started this process; costs nothing.
[[nodiscard]] bool launched();

/// MPI, from construction to destruction, which end all communicators. Where the program has begun with MPI by itself,
/// its end is left to the program too.
///
/// Thread safety: one thread at a time uses it, and what communicates through it.
class Session {
 public:
  /// Throws Error where MPI can't be started, or allows calls from the main thread only.
  Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  /// Waits for the other ranks; not while an exception is on its way, since they may wait for this one: whoever catches
  /// it calls `abort`.
  ~Session();

 private:
  bool owned_ = false;
  int exceptions_;
};

/// All ranks, with a context of their own: nothing that the program sends by itself gets in between. Collective. It and
/// the groups that come from it by `split` are used by one thread at a time, all together. Parts of no bytes send
/// nothing. A rank that gets more or fewer bytes than it expects throws Error; one that expects some from a rank that
/// sends it none waits for ever.
[[nodiscard]] std::shared_ptr<Communicator> world(const Session& session);

/// The cores that this rank can count as its own, at least 1: those it may run on, divided by the ranks that may run on
/// some of them as well. Collective.
[[nodiscard]] int cores_per_rank(const Session& session);

/// Ends all ranks, with one line on standard error, which begins with the rank if that is not 0. Where several call it,
/// the lowest of them speaks: a rank waits a second or two for the word of a lower one.
[[noreturn]] void abort(std::string_view message, int exit_code = 1);

}  // namespace regard::mpi
