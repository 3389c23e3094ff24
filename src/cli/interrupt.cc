#include "cli/interrupt.h"

#include <csignal>

namespace regard::cli {
namespace {

volatile std::sig_atomic_t noted = 0;

void note(int signal) {
  noted = 1;
  std::signal(signal, SIG_DFL);
}

}  // namespace

void watch_for_interrupt(bool terminate_too) {
  std::signal(SIGINT, note);
  if (terminate_too) std::signal(SIGTERM, note);
}

bool interrupted() { return noted != 0; }

}  // namespace regard::cli
