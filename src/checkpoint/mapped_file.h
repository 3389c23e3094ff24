#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <utility>

namespace regard {

// A file, mapped for reading as long as the object lives.
class MappedFile {
 public:
  // Throws Error if the file can't be opened, is no regular file or is empty.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedFile();

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  // Throws Error where the path leads to a file that is shorter: of this one, written to in place, zeros may have been
  // read in the page of its new end.
  void check_size() const;
  // The pages may leave memory; they are read from the file again when touched.
  void release_pages() const;

 private:
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

}  // namespace regard
