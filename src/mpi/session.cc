#include <sched.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>

#include "mpi/check.h"
#include "mpi/mpi_communicator.h"
#include "regard/mpi.h"
#include "tensor/fail.h"

namespace regard::mpi {

void check(int code, std::string_view call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> words{};
  int length = 0;
  MPI_Error_string(code, words.data(), &length);
  fail("mpi: {} failed: {}", call, std::string_view(words.data(), static_cast<size_t>(length)));
}

bool launched() {
  // Open MPI; MPICH, Intel MPI and others; launchers with PMIx, such as Slurm's.
  constexpr std::array kMarks = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"};
  return std::ranges::any_of(kMarks, [](const char* mark) { return std::getenv(mark) != nullptr; });
}

Session::Session() : exceptions_(std::uncaught_exceptions()) {
  int initialized = 0;
  check(MPI_Initialized(&initialized), "MPI_Initialized");
  owned_ = initialized == 0;
  // Open MPI adds ten lines to the one of `abort`, some of them after it; a user who sets the variable gets them.
  if (owned_) setenv("OMPI_MCA_orte_execute_quiet", "1", 0);
  int level = MPI_THREAD_SINGLE;
  if (owned_)
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level), "MPI_Init_thread");
  else
    check(MPI_Query_thread(&level), "MPI_Query_thread");
  require(level >= MPI_THREAD_SERIALIZED, "mpi: only the main thread may call MPI, expected MPI_THREAD_SERIALIZED");
  roll_call_ = std::make_shared<RollCall>();
}

Session::~Session() {
  if (std::uncaught_exceptions() > exceptions_) return;
  roll_call_.reset();
  if (owned_) MPI_Finalize();
}

std::shared_ptr<Communicator> world(const Session& session, std::chrono::milliseconds timeout) {
  require(timeout.count() >= 0, "mpi: timeout is {} ms, expected 0 or more", timeout.count());
  MPI_Comm own = MPI_COMM_NULL;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &own), "MPI_Comm_dup");
  return std::make_shared<MpiCommunicator>(own, std::make_shared<Family>(Family{session.roll_call_, timeout}));
}

int cores_per_rank(const Session& session) {
  MPI_Comm handle = MPI_COMM_NULL;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &handle), "MPI_Comm_split_type");
  MpiCommunicator machine(handle, std::make_shared<Family>(Family{session.roll_call_, kTimeout}));
  cpu_set_t own;
  CPU_ZERO(&own);
  // Where the system does not tell, the set stays empty.
  (void)sched_getaffinity(0, sizeof(own), &own);
  const auto sharing = std::ranges::count_if(machine.gather(own), [&](const cpu_set_t& other) {
    cpu_set_t both;
    CPU_AND(&both, &own, &other);
    return CPU_COUNT(&both) > 0;
  });
  return sharing == 0 ? 1 : std::max(1, CPU_COUNT(&own) / static_cast<int>(sharing));
}

}  // namespace regard::mpi
