#include "cli/ranks.h"

#include <fmt/format.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <string_view>

#include "cli/build_id.h"
#include "cli/launchers.h"
#include "cli/rank_report.h"
#include "cli/standard_streams.h"
#include "kernels/targets.h"
#include "parallel/broadcast.h"
#include "regard/agreement.h"
#include "tensor/fail.h"
#ifdef REGARD_WITH_MPI
#include "regard/mpi.h"
#endif

namespace regard::cli {
namespace {

// How many timeouts a rank waits for one that reads a model from its disk.
constexpr int kSlow = 10;

}  // namespace

#ifdef REGARD_WITH_MPI

struct CommandRanks::Launched {
  explicit Launched(std::chrono::seconds timeout = std::chrono::seconds(0))
      : world(mpi::world(session, timeout)),
        slow(mpi::world(session, kSlow * timeout)),
        typed(mpi::world(session, {})) {}

  mpi::Session session;
  std::shared_ptr<Communicator> world;
  std::shared_ptr<Communicator> slow;   // where ranks wait for each other's disks
  std::shared_ptr<Communicator> typed;  // where they wait for a person

  [[nodiscard]] int cores() const { return mpi::cores_per_rank(session); }
};

namespace {

std::string how_to_start(int64_t ranks, std::string_view options) {
  return fmt::format("start them with: mpirun -n {} regard ...{}", ranks, options);
}
bool launched() { return mpi::launched(); }

}  // namespace

int end_with(const std::string& line, int exit_code) {
  if (launched()) mpi::abort(line, exit_code);
  say("{}\n", line);
  return exit_code;
}

#else

struct CommandRanks::Launched {
  explicit Launched(std::chrono::seconds /*timeout*/ = {}) {}

  std::shared_ptr<Communicator> world = Communicator::single();
  std::shared_ptr<Communicator> slow = world;
  std::shared_ptr<Communicator> typed = world;

  [[nodiscard]] static int cores() { return 0; }
};

namespace {

std::string how_to_start(int64_t /*ranks*/, std::string_view /*options*/) {
  return "this regard is built without MPI, which it takes for more than one";
}
bool launched() { return false; }

}  // namespace

int end_with(const std::string& line, int exit_code) {
  say("{}\n", line);
  return exit_code;
}

#endif

namespace {

const std::map<std::string, OutputDispatch>& dispatches() {
  static const std::map<std::string, OutputDispatch> all = {
      {"AR_AG", OutputDispatch::AR_AG}, {"RS_AG", OutputDispatch::RS_AG}, {"AG_AR", OutputDispatch::AG_AR}};
  return all;
}

}  // namespace

std::string_view RankOptions::name_of(OutputDispatch dispatch) {
  return std::ranges::find_if(dispatches(), [&](const auto& named) { return named.second == dispatch; })->first;
}

void RankOptions::add_to(CLI::App& command) {
  const auto degree = CLI::Range(1, 1 << 16);
  const char* group = "Many ranks (with mpirun -n, as many as tp times cp)";
  const auto flag = [&](const char* name, bool& value, const char* text) {
    command.add_flag(name, value, text)->group(group);
  };
  command.add_option("--tp", tp, "Ranks that divide the heads among them (default: 1)")->check(degree)->group(group);
  command.add_option("--cp", cp, "Groups of such ranks that divide a prompt's tokens (default: 1)")
      ->check(degree)
      ->group(group);
  command
      .add_option(
          "--dp", dp,
          "Parts of all ranks that divide the sequences in decode; one sequence leaves the others idle (default: 1)")
      ->check(degree)
      ->group(group);
  flag("--sp", sequence_parallel, "Divide the tokens between layers, too");
  flag("--flash-decoding", flash_decoding,
       "In decode, where --tp is a multiple of the KV heads: ranks with the same one divide its tokens");
  flag("--strided", strided, "With --cp: deal tokens out one by one, for equal work");
  command
      .add_option_function<std::string>(
          "--dispatch", [this](const std::string& name) { dispatch = dispatches().at(name); },
          "With --dp: sum, then gather (AR_AG, the default), sum in parts (RS_AG), or gather, then sum (AG_AR)")
      ->check(CLI::IsMember(dispatches()))
      ->group(group);
  flag("--deterministic", deterministic, "The same bits whatever --tp, --cp and --dp");
  flag("--show-ranks", show_ranks, "First print a line for each host: CPU, instruction set, threads, cores and ranks");
  flag("--verify", verify, "Compare whole model files between ranks, not 192 bytes of each tensor");
  command
      .add_option("--timeout", timeout,
                  "Seconds that a rank waits for others, where nothing moves, before all end; ten times as long while "
                  "they load; 0: for ever (default: 60)")
      ->check(CLI::Range(0, 1'000'000))
      ->group(group);
}

ParallelConfig RankOptions::config() const {
  require(cp > 1 || !strided, "--strided is given and --cp is 1, expected a --cp of 2 or more");
  require(tp * cp % dp == 0, "--dp is {}, but has to divide the {} ranks (--tp {} times --cp {})", dp, tp * cp, tp, cp);
  return {.tp_degree = tp * cp,
          .cp_degree = cp,
          .attention_dp_degree = dp,
          .sequence_parallel_enabled = sequence_parallel,
          .flash_decoding_enabled = flash_decoding,
          .context_split = strided ? ContextSplit::strided : ContextSplit::contiguous,
          .output_dispatch = dispatch,
          .deterministic = deterministic};
}

Fields RankOptions::fields() const {
  return {{"version", REGARD_VERSION},
          {"the build id", build_id()},
          {"the instruction set, which REGARD_TARGET chooses,", kernels::target_name()},
          {"--tp", fmt::to_string(tp)},
          {"--cp", fmt::to_string(cp)},
          {"--dp", fmt::to_string(dp)},
          {"--sp", fmt::to_string(sequence_parallel)},
          {"--flash-decoding", fmt::to_string(flash_decoding)},
          {"--strided", fmt::to_string(strided)},
          {"--dispatch", std::string(name_of(dispatch))},
          {"--deterministic", fmt::to_string(deterministic)},
          {"--show-ranks", fmt::to_string(show_ranks)},
          {"--verify", fmt::to_string(verify)}};
}

std::string RankOptions::flags_of(const ParallelConfig& config) {
  std::string flags = fmt::format(" --tp {}", config.tp_degree / config.cp_degree);
  if (config.cp_degree > 1) flags += fmt::format(" --cp {}", config.cp_degree);
  if (config.attention_dp_degree > 1) flags += fmt::format(" --dp {}", config.attention_dp_degree);
  if (config.sequence_parallel_enabled) flags += " --sp";
  if (config.flash_decoding_enabled) flags += " --flash-decoding";
  if (config.context_split == ContextSplit::strided) flags += " --strided";
  if (config.output_dispatch != OutputDispatch::AR_AG)
    flags += fmt::format(" --dispatch {}", name_of(config.output_dispatch));
  if (config.deterministic) flags += " --deterministic";
  return flags;
}

CommandRanks::CommandRanks(const RankOptions& options, Fields settings)
    : verify_(options.verify), show_ranks_(options.show_ranks) {
  const ParallelConfig config = options.config();
  config.check();
  if (launched()) launched_ = std::make_unique<Launched>(std::chrono::seconds(options.timeout));
  const int count = launched_ == nullptr ? 1 : launched_->world->size();
  refuse_copies(count);
  require(config.tp_degree == count, "ranks are {}, but --tp {} times --cp {} is {}, expected the same; {}", count,
          options.tp, options.cp, config.tp_degree,
          config.tp_degree == 1 ? fmt::format("give --tp {}", count) : how_to_start(config.tp_degree, ""));
  if (launched_ != nullptr) {
    const Fields own = options.fields();
    settings.insert(settings.begin(), own.begin(), own.end());
    regard::check_agreement(*launched_->world, settings);
  }
  ranks_ = Ranks(launched_ == nullptr ? Communicator::single() : launched_->world, config);
}

CommandRanks::~CommandRanks() = default;

void CommandRanks::run_alone(CLI::App& command, std::function<void()> run) {
  command.callback([&command, run = std::move(run)] {
    const int count = launched() ? Launched().world->size() : 1;
    require(count == 1, "regard {} runs in one process, but {} were started; start it without mpirun",
            command.get_name(), count);
    refuse_copies(count);
    run();
  });
}

Checkpoint CommandRanks::open_model(const std::string& path) const {
  if (!Checkpoint::holds_shards(path)) return Checkpoint::open(path);
  Checkpoint part = Checkpoint::open_shard(path, ranks_.rank());
  // Here, so that ranks with a part complain together with those that have none.
  const int64_t parts = part.shard()->tp_degree;
  require(parts == ranks_.size(), "checkpoint: {} was cut for {} ranks, but there are {}; {}", path, parts,
          ranks_.size(), how_to_start(parts, fmt::format(" --tp {}", parts)));
  const ParallelConfig& config = ranks_.config();
  require(config.cp_degree == 1 && config.attention_dp_degree == 1,
          "checkpoint: {} was cut for --tp alone, expected no --cp and no --dp", path);
  return part;
}

Model CommandRanks::load_model(const Checkpoint& checkpoint, const ModelSpec& spec, const Threads& threads) const {
  if (show_ranks_) {
    const std::string lines = describe_ranks(ranks_.world(), threads.count());
    if (speaks()) say_text(lines);
  }
  Model model = Model::load(checkpoint, spec, threads, ranks_);
  if (launched_ != nullptr) (void)launched_->slow->gather(0);
  return model;
}

int CommandRanks::threads(int asked) const {
  // Also where it is not needed here: other ranks may have been asked for something else.
  const int cores = launched_ == nullptr ? 0 : launched_->cores();
  return asked > 0 ? asked : cores;
}

void CommandRanks::check_agreement(const Checkpoint& checkpoint, Fields read) const {
  if (ranks_.size() == 1) return;
  read.emplace_back("the model's digest", digest_of(checkpoint, verify_ ? DigestScope::whole : DigestScope::samples));
  regard::check_agreement(*launched_->slow, read);
}

std::string CommandRanks::from_first(std::string text) const {
  return launched_ == nullptr ? text : regard::from_first(*launched_->typed, std::move(text));
}

int64_t CommandRanks::from_first(int64_t number) const {
  if (launched_ != nullptr) regard::broadcast(*launched_->typed, std::as_writable_bytes(std::span(&number, 1)));
  return number;
}

int64_t CommandRanks::on_this_host() const {
  utsname names{};
  uname(&names);
  const auto name = std::to_array(names.nodename);
  return std::ranges::count(ranks_.world().gather(name), name);
}

bool CommandRanks::any(bool value) const {
  const auto values = ranks_.world().gather(static_cast<char>(value));
  return std::ranges::find(values, char{1}) != values.end();
}

}  // namespace regard::cli
