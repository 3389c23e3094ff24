#pragma once

namespace regard::cli {

// Throws Error where a launcher has started several processes and this one finds itself alone: each would do all of the
// work, and write over what the others write. `ranks` is how many of them MPI has brought together.
void refuse_copies(int ranks);

}  // namespace regard::cli
