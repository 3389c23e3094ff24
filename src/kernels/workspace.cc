#include "kernels/workspace.h"

namespace regard {

Workspace::Workspace(int threads) : threads_(threads), memory_(std::make_unique<Memory>()) {}
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;
Workspace::~Workspace() = default;

}  // namespace regard
