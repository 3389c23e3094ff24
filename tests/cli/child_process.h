#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

namespace regard::test {

struct Finished {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  std::string out;
  std::string err;
};

// The `regard` command (REGARD_COMMAND) as a child process, its input and its outputs pipes.
class ChildProcess {
 public:
  // `output`, `error`: files that standard output and standard error go to instead of the pipes, or kClosed.
  explicit ChildProcess(const std::vector<std::string>& arguments, const char* output = nullptr,
                        const char* error = nullptr);
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess();

  static constexpr const char* kClosed = "";

  // Stops reading: the child's next write meets a pipe without a reader.
  void abandon_output();
  void abandon_error();
  // Waits until at least `bytes` bytes have come on standard output.
  void wait_for_output(size_t bytes);
  // What has come so far.
  [[nodiscard]] const std::string& output() const { return result_.out; }
  // Waits until the child handles a signal by itself, as Linux tells, for half a minute at most.
  void wait_until_it_catches(int signal) const;
  // Waits until the child has mapped a file and sleeps, as it does when it waits for its input; for half a minute at
  // most.
  void wait_until_it_maps(const std::string& file) const;
  void send_signal(int signal) const;
  // Gives `input` to the child, reads both outputs and waits for its end.
  [[nodiscard]] Finished finish(std::string_view input = {});

 private:
  // Moves what can be moved through the pipes; false when both outputs are closed.
  bool pump(std::string_view& input);

  pid_t child_ = -1;
  int in_ = -1;
  int out_ = -1;
  int err_ = -1;
  Finished result_;
};

[[nodiscard]] Finished run_command(const std::vector<std::string>& arguments, std::string_view input = {});

}  // namespace regard::test
