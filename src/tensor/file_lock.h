#pragma once

#include <filesystem>
#include <utility>

namespace regard {

// The exclusive lock of a file (flock) among the programs that ask for it, as long as the object lives. The kernel
// frees it when the process ends, however that happens.
class FileLock {
 public:
  FileLock() = default;
  // Opens the file for reading and writing, and locks it if no other owner has the lock. `create`: it is made where it
  // is missing.
  explicit FileLock(const std::filesystem::path& path, bool create = false);
  FileLock(FileLock&& other) noexcept : file_(std::exchange(other.file_, -1)), state_(other.state_) {}
  FileLock& operator=(FileLock&& other) noexcept {
    std::swap(file_, other.file_);
    std::swap(state_, other.state_);
    return *this;
  }
  ~FileLock();

  // Whether the file could be opened; if not, errno says why.
  [[nodiscard]] bool open() const { return file_ >= 0; }
  // Whether this object has the lock of the file that has the name now.
  [[nodiscard]] bool held() const { return state_ == State::held; }
  // Whether another owner has it. Where the file system knows no locks, a file is neither held nor busy.
  [[nodiscard]] bool busy() const { return state_ == State::busy; }
  // Waits until the file's bytes are on the disk; false if that fails.
  [[nodiscard]] bool sync() const;

 private:
  enum class State : uint8_t { none, held, busy };

  int file_ = -1;
  State state_ = State::none;
};

}  // namespace regard
