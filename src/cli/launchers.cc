#include "cli/launchers.h"

#include <cstdlib>

#include "tensor/fail.h"

namespace regard::cli {
namespace {

struct Launcher {
  const char* name;
  const char* count;  // variables of the environment
  const char* rank;
  bool of_mpi;
};

// A job's own variable comes before that of the step around it. SLURM_NTASKS is no sign: a batch script has it, too.
constexpr Launcher kLaunchers[] = {
    {.name = "mpirun", .count = "OMPI_COMM_WORLD_SIZE", .rank = "OMPI_COMM_WORLD_RANK", .of_mpi = true},
    {.name = "a launcher with PMI", .count = "PMI_SIZE", .rank = "PMI_RANK", .of_mpi = true},
    {.name = "srun", .count = "SLURM_STEP_NUM_TASKS", .rank = "SLURM_PROCID", .of_mpi = false},
    {.name = "torchrun", .count = "WORLD_SIZE", .rank = "RANK", .of_mpi = false},
};

#ifdef REGARD_WITH_MPI
constexpr const char* kRemedy =
    "expected processes that this regard's MPI brings together: start them with mpirun, or with srun --mpi=pmix";
#else
constexpr const char* kRemedy = "expected one: this regard is built without MPI";
#endif

}  // namespace

void refuse_copies(int ranks) {
  if (ranks > 1) return;
  for (const Launcher& launcher : kLaunchers) {
    const char* count = std::getenv(launcher.count);
    if (count == nullptr || std::getenv(launcher.rank) == nullptr) continue;
    require(std::atoi(count) <= 1, "{} has started {} processes ({} and {} are set), each of which is alone, {}",
            launcher.name, std::atoi(count), launcher.count, launcher.rank, kRemedy);
    if (launcher.of_mpi) return;
  }
}

}  // namespace regard::cli
