#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <initializer_list>
#include <string>
#include <thread>
#include <vector>

// Programs that a launcher (REGARD_COMMAND) runs as ranks.
namespace regard::test {

using Words = std::vector<std::string>;
using Clock = std::chrono::steady_clock;

// How long ranks may take to end once one of them has failed.
inline constexpr std::chrono::seconds kSoon{60};

// The launcher's words for several programs, whose ranks come one after the other.
inline Words launch_words(const std::vector<Words>& programs) {
  Words words = {REGARD_LAUNCH_FLAGS};
  for (size_t i = 0; i < programs.size(); ++i) {
    if (i > 0) words.emplace_back(":");
    words.insert(words.end(), programs[i].begin(), programs[i].end());
  }
  return words;
}

inline bool alive(pid_t process) { return kill(process, 0) == 0 || errno != ESRCH; }

inline void expect_all_gone(const std::vector<pid_t>& processes, Clock::time_point since) {
  for (const pid_t process : processes)
    while (alive(process)) {
      ASSERT_LT(Clock::now() - since, kSoon) << process << " hangs";
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

}  // namespace regard::test
