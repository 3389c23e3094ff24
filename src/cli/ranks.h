#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "regard/checkpoint.h"
#include "regard/model.h"
#include "regard/parallel.h"

namespace regard::cli {

// Names and values that all ranks have to have alike.
using Fields = std::vector<std::pair<std::string, std::string>>;

// --tp, --cp, --dp and how they work together.
struct RankOptions {
  int64_t tp = 1;
  int64_t cp = 1;
  int64_t dp = 1;
  bool sequence_parallel = false;
  bool flash_decoding = false;
  bool strided = false;
  bool deterministic = false;
  OutputDispatch dispatch = OutputDispatch::AR_AG;
  bool verify = false;
  bool show_ranks = false;
  int64_t timeout = 60;  // seconds; 0: none

  void add_to(CLI::App& command);
  // Throws Error for flags that need another one.
  [[nodiscard]] ParallelConfig config() const;
  // With the build of this program and its instruction set.
  [[nodiscard]] Fields fields() const;
  // The flags that ask for a config, each with a space before it; of those that mean nothing to it, none.
  [[nodiscard]] static std::string flags_of(const ParallelConfig& config);
  [[nodiscard]] static std::string_view name_of(OutputDispatch dispatch);
};

// The ranks of a command, from its start to its end: this process alone or, started by mpirun, all of its processes. An
// exception may leave it at any time; whoever catches it calls `end_with`.
class CommandRanks {
 public:
  // `settings` are what else the command was told. Throws Error where there are not as many processes as the options
  // need, or where these were told different things, which would make them wait for each other for ever.
  CommandRanks(const RankOptions& options, Fields settings);
  CommandRanks(const CommandRanks&) = delete;
  CommandRanks& operator=(const CommandRanks&) = delete;
  ~CommandRanks();
  // Has a command run without ranks: it throws Error where a launcher started several processes, each of which would do
  // all of its work.
  static void run_alone(CLI::App& command, std::function<void()> run);

  [[nodiscard]] const Ranks& ranks() const { return ranks_; }
  // Whether this is the rank that prints and writes.
  [[nodiscard]] bool speaks() const { return ranks_.rank() == 0; }
  // The model, or this rank's part of one that `regard shard` has cut.
  [[nodiscard]] Checkpoint open_model(const std::string& path) const;
  // Shows the ranks where asked to, loads the model and waits for the others, which may have slower disks: for ten
  // timeouts. Collective.
  [[nodiscard]] Model load_model(const Checkpoint& checkpoint, const ModelSpec& spec, const Threads& threads) const;
  // As many as were asked for or, for 0, this rank's part of the machine's cores. Collective.
  [[nodiscard]] int threads(int asked) const;
  // Throws Error on all ranks where they hold different checkpoints, or have read other things. With --verify each
  // reads its files whole, and the slowest has ten timeouts for it. Collective.
  void check_agreement(const Checkpoint& checkpoint, Fields read = {}) const;
  // What the first rank has read: it alone gets standard input, and may wait for it for ever. Collective.
  [[nodiscard]] std::string from_first(std::string text) const;
  [[nodiscard]] int64_t from_first(int64_t number) const;
  // How many of the ranks are on this one's host. Collective.
  [[nodiscard]] int64_t on_this_host() const;
  // Whether a value is true on any rank. Collective.
  [[nodiscard]] bool any(bool value) const;

 private:
  struct Launched;
  std::unique_ptr<Launched> launched_;  // none for a process alone
  Ranks ranks_;
  bool verify_;
  bool show_ranks_;
};

// Ends a command that has failed: prints the line and returns the exit code. With other ranks it does not return: one
// line comes from one of them, and all end.
int end_with(const std::string& line, int exit_code);

}  // namespace regard::cli
