#pragma once

namespace regard::cli {

// From now on the first Ctrl-C is only noted, for `interrupted`; the second one ends the process. The same for SIGTERM,
// which batch systems send, and mpirun when it gets a Ctrl-C, and for SIGHUP, which a terminal sends that goes away,
// unless it is ignored, as under nohup.
void watch_for_interrupt();
[[nodiscard]] bool interrupted();

}  // namespace regard::cli
