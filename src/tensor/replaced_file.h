#pragma once

#include <filesystem>
#include <fstream>

#include "tensor/file_lock.h"

namespace regard {

// A file that is written beside its place and takes it as a whole: who reads finds what was there before or what is
// there now, never a part. Where the path is a link, what it points to is replaced; a file keeps its permissions. What
// killed programs have left beside it, "<name>.<process>.tmp" without an owner, is removed.
class ReplacedFile {
 public:
  // Throws Error, with the reason, if it can't be written, or if something else than a file is in its place.
  explicit ReplacedFile(const std::filesystem::path& path);
  ReplacedFile(const ReplacedFile&) = delete;
  ReplacedFile& operator=(const ReplacedFile&) = delete;
  // Leaves the old file, unless `commit` came.
  ~ReplacedFile();

  [[nodiscard]] std::ostream& stream() { return out_; }
  // Returns the lock of the new file, which other programs have not had in their hands. Throws Error if not all of it
  // could be written.
  FileLock commit();

 private:
  std::filesystem::path path_;  // as it was named
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  FileLock lock_;  // of the temporary file: it has an owner
  std::ofstream out_;
  bool committed_ = false;
};

}  // namespace regard
