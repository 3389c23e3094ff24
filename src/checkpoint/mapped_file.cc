#include "checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tensor/fail.h"

namespace regard {

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  require(file >= 0, "checkpoint: {} can't be opened: {}", path.string(), std::strerror(errno));
  struct stat status {};
  const bool regular = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  void* mapped = MAP_FAILED;
  if (regular && status.st_size > 0)
    mapped = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  require(regular, "checkpoint: {} is no regular file", path.string());
  require(status.st_size > 0, "checkpoint: {} is empty", path.string());
  require(mapped != MAP_FAILED, "checkpoint: {} can't be mapped into memory", path.string());
  bytes_ = {static_cast<const std::byte*>(mapped), static_cast<size_t>(status.st_size)};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::check_size() const {
  std::error_code error;
  const auto size = std::filesystem::file_size(path_, error);
  require(error || size >= bytes_.size(), "checkpoint: {} had {} bytes when it was opened and has {} now",
          path_.string(), bytes_.size(), size);
}

void MappedFile::release_pages() const {
  if (!bytes_.empty()) madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
}

}  // namespace regard
