#pragma once

namespace regard::cli {

// From now on the first Ctrl-C is only noted, for whoever asks; the second one ends the process.
void watch_for_interrupt();
[[nodiscard]] bool interrupted();

}  // namespace regard::cli
