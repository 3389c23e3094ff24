#include "tensor/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace regard {
namespace {

// Whether the path still leads to the open file: another program may have replaced or removed it in between.
bool names(const std::filesystem::path& path, int file) {
  struct stat named {};
  struct stat opened {};
  return stat(path.c_str(), &named) == 0 && fstat(file, &opened) == 0 && named.st_dev == opened.st_dev &&
         named.st_ino == opened.st_ino;
}

}  // namespace

FileLock::FileLock(const std::filesystem::path& path, bool create) {
  constexpr mode_t kPermissions = 0666;  // less the umask
  do {
    if (file_ >= 0) close(file_);
    file_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), kPermissions);
    if (file_ < 0) return;
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      state_ = errno == EWOULDBLOCK ? State::busy : State::none;
      return;
    }
  } while (!names(path, file_));
  state_ = State::held;
}

FileLock::~FileLock() {
  if (file_ >= 0) close(file_);
}

bool FileLock::sync() const { return fsync(file_) == 0; }

}  // namespace regard
