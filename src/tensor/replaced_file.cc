#include "tensor/replaced_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tensor/fail.h"

namespace regard {
namespace {

namespace fs = std::filesystem;

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

fs::path temporary_of(const fs::path& target, std::string_view process) {
  fs::path temporary = target;
  temporary += fmt::format(".{}.tmp", process);
  return temporary;
}

// Removes the temporary files of programs that were killed. Nobody has their locks; where the file system knows none,
// the files stay.
void remove_leftovers(const fs::path& target) {
  constexpr std::string_view kDigits = "0123456789";
  const std::string name = target.filename().string() + ".";
  std::error_code error;
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  for (fs::directory_iterator entries(folder, error); !error && entries != fs::directory_iterator();
       entries.increment(error)) {
    const fs::path& path = entries->path();
    const std::string process = path.stem().extension().string();
    if (process.size() < 2 || process.find_first_not_of(kDigits, 1) != std::string::npos) continue;
    if (path.filename() != temporary_of(target, process.substr(1)).filename()) continue;
    std::error_code ignored;
    if (entries->is_regular_file(ignored) && FileLock(path).held()) fs::remove(path, ignored);
  }
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
  remove_leftovers(target_);
  temporary_ = temporary_of(target_, fmt::to_string(getpid()));
  lock_ = FileLock(temporary_, true);
  require(lock_.open(), "\"{}\" can't be written: {}", path.string(), std::strerror(errno));
  require(!lock_.busy(), "\"{}\" can't be written: another program writes \"{}\"", path.string(), temporary_.string());
  out_.open(temporary_, std::ios::binary | std::ios::trunc);
  if (fs::exists(status)) fs::permissions(temporary_, status.permissions(), error);
}

ReplacedFile::~ReplacedFile() {
  std::error_code ignored;
  if (!committed_) fs::remove(temporary_, ignored);
}

FileLock ReplacedFile::commit() {
  errno = 0;
  out_.close();
  // On the disk first, so that the name never stands for less than the whole file. A write that failed earlier has left
  // no reason; a disk is seldom short of anything but room.
  require(out_.good() && lock_.sync(), "{} can't be written: {}", path_.string(),
          errno == 0 ? "the disk may be full" : std::strerror(errno));
  std::error_code error;
  fs::rename(temporary_, target_, error);
  require(!error, "{} can't be written: {}", path_.string(), error.message());
  committed_ = true;
  return std::move(lock_);
}

}  // namespace regard
