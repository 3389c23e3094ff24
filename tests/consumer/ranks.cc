#include <regard/mpi.h>

// Only linked: it takes a launcher to run it.
int main() {
  const regard::mpi::Session session;
  return regard::mpi::world(session)->size() == 1 ? 0 : 1;
}
