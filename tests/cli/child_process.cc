#include "cli/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <csignal>
#include <fstream>
#include <stdexcept>
#include <thread>

namespace regard::test {
namespace {

struct Pipe {
  int read_end;
  int write_end;
};

Pipe make_pipe() {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe can be made");
  return {.read_end = ends[0], .write_end = ends[1]};
}

void close_end(int& end) {
  if (end >= 0) close(end);
  end = -1;
}

// Standard output or error of the child: a pipe's end, a file, or nothing.
void set_stream(posix_spawn_file_actions_t& actions, int stream, const char* file, const Pipe& pipe) {
  if (file == nullptr)
    posix_spawn_file_actions_adddup2(&actions, pipe.write_end, stream);
  else if (file == std::string_view(ChildProcess::kClosed))
    posix_spawn_file_actions_addclose(&actions, stream);
  else
    posix_spawn_file_actions_addopen(&actions, stream, file, O_WRONLY, 0);
}

// Appends what can be read now; closes the end where there is nothing more to come.
void drain(int& end, std::string& text) {
  std::array<char, 65536> buffer{};
  const ssize_t count = read(end, buffer.data(), buffer.size());
  if (count > 0)
    text.append(buffer.data(), static_cast<size_t>(count));
  else
    close_end(end);
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, const char* output, const char* error) {
  // A child that ends before it has read its input must not end the test.
  std::signal(SIGPIPE, SIG_IGN);
  Pipe in = make_pipe();
  Pipe out = make_pipe();
  Pipe err = make_pipe();
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.read_end, STDIN_FILENO);
  set_stream(actions, STDOUT_FILENO, output, out);
  set_stream(actions, STDERR_FILENO, error, err);
  // The child has the signals of a shell's child, not those of the test.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t pipe_signal;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  posix_spawnattr_setsigdefault(&attributes, &pipe_signal);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  std::string command = REGARD_COMMAND;
  std::vector<std::string> words = arguments;
  std::vector<char*> argv = {command.data()};
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int failure = posix_spawn(&child_, command.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  close(in.read_end);
  close(out.write_end);
  close(err.write_end);
  in_ = in.write_end;
  out_ = out.read_end;
  err_ = err.read_end;
  if (failure != 0) throw std::runtime_error("the command can't be started");
}

ChildProcess::~ChildProcess() {
  for (int* end : {&in_, &out_, &err_}) close_end(*end);
  if (child_ <= 0) return;
  kill(child_, SIGKILL);
  waitpid(child_, nullptr, 0);
}

bool ChildProcess::pump(std::string_view& input) {
  if (input.empty()) close_end(in_);
  std::array<pollfd, 3> ends = {{{in_, POLLOUT, 0}, {out_, POLLIN, 0}, {err_, POLLIN, 0}}};
  constexpr int kPatience = 60'000;
  if (poll(ends.data(), ends.size(), kPatience) <= 0) throw std::runtime_error("the command does not end");
  if (ends[0].revents != 0) {
    // As much as a pipe takes without waiting.
    const ssize_t count = write(in_, input.data(), std::min<size_t>(input.size(), PIPE_BUF));
    if (count < 0)
      input = {};
    else
      input.remove_prefix(static_cast<size_t>(count));
  }
  if (ends[1].revents != 0) drain(out_, result_.out);
  if (ends[2].revents != 0) drain(err_, result_.err);
  return out_ >= 0 || err_ >= 0;
}

void ChildProcess::abandon_output() { close_end(out_); }
void ChildProcess::abandon_error() { close_end(err_); }

void ChildProcess::wait_for_output(size_t bytes) {
  std::string_view nothing;
  while (result_.out.size() < bytes && pump(nothing)) {
  }
}

void ChildProcess::wait_until_it_catches(int signal) const {
  using namespace std::chrono_literals;
  for (int i = 0; i < 3000; ++i, std::this_thread::sleep_for(10ms)) {
    std::ifstream status("/proc/" + std::to_string(child_) + "/status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("SigCgt:") && (std::stoull(line.substr(7), nullptr, 16) >> (signal - 1) & 1) != 0) return;
  }
}

void ChildProcess::wait_until_it_maps(const std::string& file) const {
  using namespace std::chrono_literals;
  const std::string process = "/proc/" + std::to_string(child_);
  const auto holds = [&](const char* name, const std::string& text) {
    std::ifstream lines(process + name);
    for (std::string line; std::getline(lines, line);)
      if (line.find(text) != std::string::npos) return true;
    return false;
  };
  for (int i = 0; i < 3000; ++i, std::this_thread::sleep_for(10ms))
    if (holds("/maps", file) && holds("/status", "State:\tS")) return;
}

void ChildProcess::send_signal(int signal) const { kill(child_, signal); }

Finished ChildProcess::finish(std::string_view input) {
  while (pump(input)) {
  }
  int status = 0;
  waitpid(child_, &status, 0);
  child_ = -1;
  if (WIFEXITED(status))
    result_.exit_code = WEXITSTATUS(status);
  else
    result_.signal = WTERMSIG(status);
  return result_;
}

Finished run_command(const std::vector<std::string>& arguments, std::string_view input) {
  return ChildProcess(arguments).finish(input);
}

}  // namespace regard::test
