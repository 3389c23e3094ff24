#pragma once

namespace regard::cli {

// A mapped file that another program makes shorter, or whose disk fails, ends the process by SIGBUS. From now on it
// ends with a line that names the file, and exit code 2.
void explain_lost_pages();

}  // namespace regard::cli
