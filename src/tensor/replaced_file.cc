#include "tensor/replaced_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tensor/fail.h"

namespace regard {
namespace {

namespace fs = std::filesystem;

// fsync, so that the name never stands for less than the whole file.
bool sync(const fs::path& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const bool synced = fsync(file) == 0;
  close(file);
  return synced;
}

// Whether a path is, or leads to, a name of an open file, as /dev/stdout does: what that stands for belongs to others.
bool names_open_file(fs::path path) {
  constexpr int kMostLinks = 40;
  for (int links = 0; links < kMostLinks; ++links) {
    std::error_code error;
    path = fs::absolute(path, error);
    if (fs::weakly_canonical(path.parent_path(), error).string().starts_with("/proc/")) return true;
    const fs::path target = fs::read_symlink(path, error);
    if (error) return false;
    path = path.parent_path() / target;
  }
  return false;
}

}  // namespace

ReplacedFile::ReplacedFile(const fs::path& path) : path_(path), target_(path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::exists(status)) {
    require(fs::is_regular_file(status) && !names_open_file(path),
            "{} can't be written: it is no file that could be replaced", path.string());
    target_ = fs::canonical(path, error);
    require(!error, "{} can't be written: {}", path.string(), error.message());
  }
  temporary_ = target_;
  temporary_ += fmt::format(".{}.tmp", getpid());
  out_.open(temporary_, std::ios::binary | std::ios::trunc);
  require(out_.is_open(), "\"{}\" can't be written: {}", path.string(), std::strerror(errno));
  if (fs::exists(status)) fs::permissions(temporary_, status.permissions(), error);
}

ReplacedFile::~ReplacedFile() {
  std::error_code ignored;
  if (!committed_) fs::remove(temporary_, ignored);
}

void ReplacedFile::commit() {
  errno = 0;
  out_.close();
  // A write that failed earlier has left no reason; a disk is seldom short of anything but room.
  require(out_.good() && sync(temporary_), "{} can't be written: {}", path_.string(),
          errno == 0 ? "the disk may be full" : std::strerror(errno));
  std::error_code error;
  fs::rename(temporary_, target_, error);
  require(!error, "{} can't be written: {}", path_.string(), error.message());
  committed_ = true;
}

}  // namespace regard
