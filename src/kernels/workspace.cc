#include "kernels/workspace.h"

#include "tensor/fail.h"

namespace regard {

Workspace::Workspace(const WorkspaceOptions& options)
    : options_(options), threads_(options.threads), memory_(std::make_unique<Memory>()) {
  const CacheSizes& caches = options.caches;
  require(caches.l1 >= 1 && caches.l2 >= 1 && caches.last_level >= 1,
          "workspace: cache sizes are {}, {} and {} bytes, expected 1 or more", caches.l1, caches.l2,
          caches.last_level);
}
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;
Workspace::~Workspace() = default;

}  // namespace regard
