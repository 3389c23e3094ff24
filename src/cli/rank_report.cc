#include "cli/rank_report.h"

#include <fmt/ranges.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <string_view>
#include <vector>

#include "kernels/targets.h"

namespace regard::cli {
namespace {

// The value of the first line "name : value" of a file of /proc; empty where there is none.
std::string value_in(const char* path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (!line.starts_with(name) || colon == line.npos) continue;
    const size_t first = line.find_first_not_of(" \t", colon + 1);
    return first == line.npos ? "" : line.substr(first);
  }
  return "";
}

std::string describe_own(int threads) {
  utsname names{};
  uname(&names);
  const std::string processor = value_in("/proc/cpuinfo", "model name");
  return fmt::format("host {}: {}, {}, {} {} a rank, cores {}", names.nodename,
                     processor.empty() ? names.machine : processor, kernels::target_name(), threads,
                     threads == 1 ? "thread" : "threads", value_in("/proc/self/status", "Cpus_allowed_list"));
}

}  // namespace

std::string describe_ranks(Communicator& world, int threads) {
  std::array<char, 512> own{};
  const std::string text = describe_own(threads);
  std::copy_n(text.begin(), std::min(text.size(), own.size() - 1), own.begin());
  std::map<std::string, std::vector<size_t>> ranks_of;
  const auto all = world.gather(own);
  for (size_t rank = 0; rank < all.size(); ++rank) ranks_of[all[rank].data()].push_back(rank);
  std::string lines;
  for (const auto& [description, ranks] : ranks_of)
    lines += fmt::format("[{}; {} {}]\n", description, ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
  return lines;
}

}  // namespace regard::cli
