#include "cli/lost_pages.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <string_view>

namespace regard::cli {
namespace {

// Whether a line of /proc/self/maps, "begin-end permissions offset device inode   path", is that of the address.
bool holds(std::string_view line, uintptr_t address) {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  const char* const last = line.data() + line.size();
  const auto [dash, error] = std::from_chars(line.data(), last, begin, 16);
  if (error != std::errc() || dash == last) return false;
  if (std::from_chars(dash + 1, last, end, 16).ec != std::errc()) return false;
  return begin <= address && address < end;
}

iovec part_of(std::string_view text) { return {const_cast<char*>(text.data()), text.size()}; }

// Ends the process with a line that names the file; does nothing for memory that is of no file.
void explain(std::string_view line) {
  const size_t path = line.find('/');
  if (path == std::string_view::npos) return;
  const std::array<iovec, 3> parts = {part_of("regard: "), part_of(line.substr(path)),
                                      part_of(" can't be read any more: it has become shorter, or its disk fails\n")};
  // One write, so that the lines of several ranks do not mix. Where it fails, nothing more can be said.
  (void)!writev(STDERR_FILENO, parts.data(), parts.size());
  constexpr int kExitCode = 2;
  _exit(kExitCode);
}

// What a signal handler may call is little: no allocation, no streams.
void on_bus_error(int signal, siginfo_t* info, void* /*context*/) {
  constexpr size_t kLongestLine = 8192;  // PATH_MAX and what stands before it
  std::array<char, kLongestLine> buffer;
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  size_t filled = 0;
  ssize_t count = 0;
  while ((count = read(maps, buffer.data() + filled, buffer.size() - filled)) > 0) {
    filled += static_cast<size_t>(count);
    std::string_view rest(buffer.data(), filled);
    for (size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
      if (holds(rest.substr(0, end), reinterpret_cast<uintptr_t>(info->si_addr))) explain(rest.substr(0, end));
      rest.remove_prefix(end + 1);
    }
    filled = rest.size();
    std::copy(rest.begin(), rest.end(), buffer.begin());
  }
  // Some other bus error: the instruction runs again, and the process ends as it would have.
  std::signal(signal, SIG_DFL);
}

}  // namespace

void explain_lost_pages() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace regard::cli
