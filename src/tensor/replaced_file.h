#pragma once

#include <filesystem>
#include <fstream>

namespace regard {

// A file that is written beside its place and takes it as a whole: who reads finds what was there before or what is
// there now, never a part. Where the path is a link, what it points to is replaced; a file keeps its permissions.
class ReplacedFile {
 public:
  // Throws Error if it can't be written, or if something else than a file is in its place.
  explicit ReplacedFile(const std::filesystem::path& path);
  ReplacedFile(const ReplacedFile&) = delete;
  ReplacedFile& operator=(const ReplacedFile&) = delete;
  // Leaves the old file, unless `commit` came.
  ~ReplacedFile();

  [[nodiscard]] std::ostream& stream() { return out_; }
  // Throws Error if not all of it could be written.
  void commit();

 private:
  std::filesystem::path path_;  // as it was named
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  std::ofstream out_;
  bool committed_ = false;
};

}  // namespace regard
