// One attention layer of the size of Llama-3-8B's over ranks: how long a prefill and a decode step take.
//   ranks_bench --threads 2                                   one rank
//   mpirun -n 2 ranks_bench --threads 1 [--cp 2] ...          two
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <random>
#include <vector>

#include "regard/attention.h"
#include "regard/mpi.h"

namespace {

using namespace regard;

struct Options {
  ParallelConfig parallel;
  int threads = 1;
  int64_t prompt = 2048;
  int64_t history = 8192;
  int repeats = 5;
};

AttentionConfig llama_8b() {
  AttentionConfig config;
  config.hidden_size = 4096;
  config.num_attention_heads = 32;
  config.num_key_value_heads = 8;
  config.rotary_emb = RotaryConfig{};
  config.inference.seq_len = 16384;
  return config.validated();
}

std::vector<BFloat16> random_bf16(int64_t count, float scale) {
  std::minstd_rand random(1);
  std::vector<BFloat16> numbers(static_cast<size_t>(count));
  for (BFloat16& number : numbers) number = BFloat16((static_cast<float>(random() % 2001) / 1000.0F - 1.0F) * scale);
  return numbers;
}

// Milliseconds of the fastest of some calls, which all ranks begin together.
template <class Call>
double fastest(const Options& options, Communicator& world, Call call) {
  double best = 1e300;
  for (int i = 0; i < options.repeats; ++i) {
    (void)world.gather(0);
    const auto start = std::chrono::steady_clock::now();
    call();
    (void)world.gather(0);
    best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// What `regard plan` wants to know of the ranks: how long the smallest exchange takes, and how fast bytes are sent.
void measure_link(const Options& options, Communicator& world) {
  constexpr int kRounds = 200;
  const double round = fastest(options, world, [&] {
    for (int i = 0; i < kRounds; ++i) (void)world.gather(0);
  });
  constexpr size_t kBytes = size_t{4} << 20;
  std::vector<std::byte> own(kBytes);
  std::vector<std::vector<std::byte>> others(static_cast<size_t>(world.size()), std::vector<std::byte>(kBytes));
  const std::vector<std::span<std::byte>> parts(others.begin(), others.end());
  const double all = fastest(options, world, [&] { world.all_gather(own, parts); });
  const double sent = static_cast<double>(kBytes) * (world.size() - 1);
  if (world.rank() == 0)
    fmt::print("an exchange takes {:.1f} us at least, a rank sends {:.2f} GB/s\n", round / kRounds * 1e3,
               sent / all / 1e6);
}

void run(const Options& options, const std::shared_ptr<Communicator>& world) {
  if (world->size() > 1) measure_link(options, *world);
  const Ranks ranks(world, options.parallel);
  const AttentionConfig config = llama_8b();
  const int64_t h = config.hidden_size;
  const auto matrix = [&](const std::vector<BFloat16>& numbers, int64_t rows) {
    return WeightView::make(WeightType::bf16, rows, h,
                            std::as_bytes(std::span(numbers).first(static_cast<size_t>(rows * h))));
  };
  const std::vector<BFloat16> numbers = random_bf16(h * h, 0.02F);
  AttentionWeights weights;
  weights.qkv.q = weights.output = matrix(numbers, h);
  weights.qkv.k = weights.qkv.v = matrix(numbers, 1024);
  Workspace workspace(options.threads);
  const Attention layer = Attention::load(weights, config, workspace.threads(), ranks);
  KvCache cache = layer.make_cache(KvStorage::contiguous, {.slots = 1, .capacity = 16384, .dtype = DType::bf16});

  const Tensor prompt(DType::f32, {options.prompt, h});
  std::minstd_rand random(2);
  for (float& x : prompt.elements<float>()) x = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
  // Some of the prompt's rows at some position; with sequence parallelism this rank's.
  const auto forward = [&](const Span& span) {
    Tensor own;
    AttentionInput input;
    input.spans = {&span, 1};
    input.cache = &cache;
    input.workspace = &workspace;
    input.present_key_value = input.angles = false;
    input.hidden_states = prompt.view().slice(0, 0, span.count);
    if (options.parallel.sequence_parallel_enabled) {
      const auto tokens = layer.tokens_of_rank(ranks.rank(), input.spans, &cache);
      own = Tensor(DType::f32, {static_cast<int64_t>(tokens.size()), h});
      for (size_t i = 0; i < tokens.size(); ++i)
        std::copy_n(prompt.view().as<float>() + tokens[i] * h, h, own.view().as<float>() + static_cast<int64_t>(i) * h);
      input.hidden_states = own;
    }
    (void)layer.forward(input);
  };
  const Span whole{.slot = 0, .first_position = 0, .count = options.prompt};
  const int64_t before = world->bytes_sent();
  forward(whole);
  const int64_t prefill_bytes = world->bytes_sent() - before;
  const double prefill =
      fastest(options, *world, [&] { forward({.slot = 0, .first_position = 0, .count = options.prompt}); });
  for (int64_t p = options.prompt; p < options.history; p += options.prompt)
    forward({.slot = 0, .first_position = p, .count = options.prompt});
  constexpr int kSteps = 20;
  const double decode = fastest(options, *world, [&] {
    for (int i = 0; i < kSteps; ++i) forward({.slot = 0, .first_position = options.history, .count = 1});
  });
  if (world->rank() == 0)
    fmt::print("{} ranks, {} threads each: prefill of {} {:.1f} ms ({:.2f} MB sent), decode at {} {:.3f} ms\n",
               world->size(), options.threads, options.prompt, prefill, static_cast<double>(prefill_bytes) / 1e6,
               options.history, decode / kSteps);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  bool ring = false;
  bool strided = false;
  CLI::App app("One attention layer of the size of Llama-3-8B's over ranks");
  app.add_option("--cp", options.parallel.cp_degree);
  app.add_option("--dp", options.parallel.attention_dp_degree);
  app.add_flag("--sp", options.parallel.sequence_parallel_enabled);
  app.add_flag("--flash-decoding", options.parallel.flash_decoding_enabled);
  app.add_flag("--deterministic", options.parallel.deterministic);
  app.add_flag("--ring", ring);
  app.add_flag("--strided", strided);
  app.add_option("--threads", options.threads);
  app.add_option("--prompt", options.prompt);
  app.add_option("--history", options.history);
  app.add_option("--repeats", options.repeats);
  CLI11_PARSE(app, argc, argv);
  if (ring) options.parallel.kv_exchange = KvExchange::ring;
  if (strided) options.parallel.context_split = ContextSplit::strided;
  if (!mpi::launched()) {
    run(options, Communicator::single());
    return 0;
  }
  const mpi::Session session;
  try {
    const auto world = mpi::world(session);
    options.parallel.tp_degree = world->size();
    run(options, world);
  } catch (const Error& error) {
    mpi::abort(error.what());
  }
}
