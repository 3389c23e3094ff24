#pragma once

namespace regard::cli {

// From now on the first Ctrl-C is only noted, for whoever asks; the second one ends the process. `terminate_too`: also
// SIGTERM, which mpirun sends its processes when it gets a Ctrl-C.
void watch_for_interrupt(bool terminate_too = false);
[[nodiscard]] bool interrupted();

}  // namespace regard::cli
