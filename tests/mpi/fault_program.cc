#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "regard/agreement.h"
#include "regard/mpi.h"
#include "support/parts.h"
#include "tensor/fail.h"

// What a program of many ranks does when one of them fails: fault_test.cc.
namespace regard::test {
namespace {

constexpr int64_t kForEver = int64_t{1} << 40;

// Rounds of exchanges; in round `fault_round`, ranks from `fault_rank` on throw.
void loop(Communicator& world, int64_t fault_round = kForEver, int fault_rank = 0) {
  fmt::print("{}\n", getpid());
  std::fflush(stdout);
  const auto sizes = [](int sender, int receiver) { return static_cast<size_t>(100'000 * sender + receiver); };
  for (int64_t round = 0; round < kForEver; ++round) {
    TestExchange under_way(world, sizes);
    require(round < fault_round || world.rank() < fault_rank, "out of luck in round {}", round);
    under_way.wait();
    require(under_way.came(), "round {} brought other bytes", round);
  }
}

void agree(Communicator& world, const std::vector<std::string>& words) {
  std::vector<std::pair<std::string, std::string>> fields;
  for (const std::string& word : words)
    fields.emplace_back(word.substr(0, word.find('=')), word.substr(word.find('=') + 1));
  check_agreement(world, fields);
}

// Rank 1 waits for rank 0, which waits for rank 2, which works for ever.
void wait_in_a_chain(Communicator& world) {
  const auto first_two = world.split(world.rank() < 2 ? 0 : 1, 0);
  while (world.rank() == 2) std::this_thread::sleep_for(std::chrono::seconds(1));
  if (world.rank() == 0) (void)world.gather(0);
  (void)first_two->gather(0);
}

// Ranks 0 and 1 gather in different groups.
void disagree(Communicator& world) {
  const auto other = world.split(0, 0);
  (void)(world.rank() == 0 ? *other : world).gather(0);
}

void run(const std::string& what, const std::vector<std::string>& words) {
  const mpi::Session session;
  const bool impatient = what == "loop_for" || what == "chain" || what == "disagree";
  const auto world =
      impatient ? mpi::world(session, std::chrono::milliseconds(std::stoi(words.at(0)))) : mpi::world(session);
  if (what == "loop_for") loop(*world);
  if (what == "chain") wait_in_a_chain(*world);
  if (what == "disagree") disagree(*world);
  if (what == "loop") loop(*world);
  if (what == "throw_from_rank") loop(*world, 20, std::stoi(words.at(0)));
  if (what == "agree") agree(*world, words);
}

}  // namespace
}  // namespace regard::test

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    regard::test::run(words.at(0), {words.begin() + 1, words.end()});
    return 0;
  } catch (const std::exception& error) {
    regard::mpi::abort(error.what(), 3);
  }
}
