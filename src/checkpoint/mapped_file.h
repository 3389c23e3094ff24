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
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  // The pages may leave memory; they are read from the file again when touched.
  void release_pages() const;

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace regard
