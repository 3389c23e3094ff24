#pragma once

#include <chrono>
#include <memory>
#include <string_view>

#include "regard/communicator.h"

/// Ranks as processes that an MPI launcher has started: library regard::mpi, which is built where MPI is found.
namespace regard::mpi {

class RollCall;

/// How long a rank waits, unless told otherwise, without a message that begins or ends.
inline constexpr std::chrono::milliseconds kTimeout{60'000};

/// Whether a launcher such as mpirun has started this process; costs nothing.
[[nodiscard]] bool launched();

/// MPI, from construction to destruction, which end all communicators; construction is collective. Where the program
/// has begun with MPI by itself, its end is left to the program too. Otherwise Open MPI is asked to leave errors to
/// `abort`, unless OMPI_MCA_orte_execute_quiet is set in the environment.
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
  friend std::shared_ptr<Communicator> world(const Session& session, std::chrono::milliseconds timeout);
  friend int cores_per_rank(const Session& session);

  bool owned_ = false;
  int exceptions_;
  std::shared_ptr<RollCall> roll_call_;
};

/// All ranks, with a context of their own: nothing that the program sends by itself gets in between. Collective. It and
/// the groups that come from it by `split` are used by one thread at a time, all together. Parts of no bytes send
/// nothing. A rank that gets more or fewer bytes than it expects throws Error, and so does one that waits for `timeout`
/// without a message of 16 MB or the end of a transfer that begins or ends: the Error names the ranks that do not
/// answer, because they are stopped, cut off or compute for that long, with their hosts. A timeout of 0 never ends.
[[nodiscard]] std::shared_ptr<Communicator> world(const Session& session, std::chrono::milliseconds timeout = kTimeout);

/// The cores that this rank can count as its own, at least 1: those it may run on, divided by the ranks that may run on
/// some of them as well. Collective.
[[nodiscard]] int cores_per_rank(const Session& session);

/// Ends all ranks, with one line on standard error, which begins with the rank if that is not 0. Where several call it,
/// the lowest of them speaks: a rank waits a second or two for the word of a lower one.
[[noreturn]] void abort(std::string_view message, int exit_code = 1);

}  // namespace regard::mpi
