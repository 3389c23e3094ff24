// One attention layer of the size of Llama-3-8B's over ranks: how long a prefill and a decode step take, and how long
// the model behind `regard plan` says they take on ranks that do what these were measured to do.
//   ranks_bench --threads 2                                   one rank
//   mpirun -n 2 ranks_bench --threads 1 [--cp 2] ...          two
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <random>
#include <vector>

#include "planning/plan.h"
#include "rank_speed.h"
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

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<int64_t>(values.size() / 2));
  return values[values.size() / 2];
}

// Times of the same call, each with what the model makes of the ranks' speed at that moment: on a shared machine both
// move from second to second.
struct Times {
  std::vector<double> measured;  // milliseconds
  std::vector<double> ratios;    // modelled to measured
  StageCost cost;                // the last one modelled

  void add(double seconds, const StageCost& modelled) {
    measured.push_back(seconds * 1e3);
    ratios.push_back((modelled.compute + modelled.link + modelled.latency) / seconds);
    cost = modelled;
  }
  void print(const std::string& what) const {
    fmt::print("{} {:.2f} ms; by the model {:.2f} of it ({:.2f} to {:.2f}), the last {:.2f} + {:.2f} + {:.2f} ms\n",
               what, std::ranges::min(measured), median(ratios), std::ranges::min(ratios), std::ranges::max(ratios),
               cost.compute * 1e3, cost.link * 1e3, cost.latency * 1e3);
  }
};

class RanksBench {
 public:
  // The history is in slot 0, prompts are in slot 1.
  RanksBench(const Options& options, const std::shared_ptr<Communicator>& world)
      : options_(options),
        world_(*world),
        ranks_(world, options.parallel),
        workspace_(options.threads),
        layer_(make_layer()),
        cache_(layer_.make_cache(KvStorage::contiguous, {.slots = 2, .capacity = 16384, .dtype = DType::bf16})),
        prompt_(DType::f32, {options.prompt, config_.hidden_size}) {
    std::minstd_rand random(2);
    for (float& x : prompt_.elements<float>()) x = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
  }
  void run();

 private:
  Attention make_layer();
  void forward(const Span& span);
  void fill();
  double prefill() {
    return bench::seconds_of_all(world_, [&] { forward({.slot = 1, .first_position = 0, .count = options_.prompt}); });
  }
  double decode() {
    constexpr int kSteps = 20;
    return bench::seconds_of_all(world_,
                                 [&] {
                                   for (int i = 0; i < kSteps; ++i)
                                     forward({.slot = 0, .first_position = options_.history, .count = 1});
                                 }) /
           kSteps;
  }

  const Options& options_;
  Communicator& world_;
  Ranks ranks_;
  AttentionConfig config_ = llama_8b();
  Workspace workspace_;
  Attention layer_;
  KvCache cache_;
  Tensor prompt_;
};

Attention RanksBench::make_layer() {
  const int64_t h = config_.hidden_size;
  const std::vector<BFloat16> numbers = random_bf16(h * h, 0.02F);
  const auto matrix = [&](int64_t rows) {
    return WeightView::make(WeightType::bf16, rows, h,
                            std::as_bytes(std::span(numbers).first(static_cast<size_t>(rows * h))));
  };
  AttentionWeights weights;
  weights.qkv.q = weights.output = matrix(h);
  weights.qkv.k = weights.qkv.v = matrix(config_.num_key_value_heads * config_.head_dim);
  return Attention::load(weights, config_, workspace_.threads(), ranks_);
}

// The first of the prompt's rows at some position; with sequence parallelism those of this rank.
void RanksBench::forward(const Span& span) {
  const int64_t h = config_.hidden_size;
  Tensor own;
  AttentionInput input;
  input.spans = {&span, 1};
  input.cache = &cache_;
  input.workspace = &workspace_;
  input.hidden_states = prompt_.view().slice(0, 0, span.count);
  if (options_.parallel.sequence_parallel_enabled) {
    const auto tokens = layer_.tokens_of_rank(ranks_.rank(), input.spans, &cache_);
    own = Tensor(DType::f32, {static_cast<int64_t>(tokens.size()), h});
    for (size_t i = 0; i < tokens.size(); ++i)
      std::copy_n(prompt_.view().as<float>() + tokens[i] * h, h, own.view().as<float>() + static_cast<int64_t>(i) * h);
    input.hidden_states = own;
  }
  (void)layer_.forward(input);
}

void RanksBench::fill() {
  for (int64_t p = 0; p < options_.history; p += options_.prompt)
    forward({.slot = 0, .first_position = p, .count = std::min(options_.prompt, options_.history - p)});
}

void RanksBench::run() {
  const ModelSpec model{.family = "layer",
                        .vocab_size = 1,
                        .hidden_size = config_.hidden_size,
                        .layers = {{.attention = config_, .mlp = DenseMlp{.width = 1}}}};
  const Workload prompts{.context = options_.prompt, .prompt = options_.prompt, .cache = DType::bf16};
  const Workload steps{.context = options_.history + 1, .prompt = 1, .cache = DType::bf16};
  const int64_t before = world_.bytes_sent();
  (void)prefill();
  const int64_t prefill_bytes = world_.bytes_sent() - before;
  fill();
  (void)decode();
  bench::RankSpeedProbe probe(world_, workspace_);
  RankSpeed speed;
  Times prefills;
  Times decodes;
  for (int i = 0; i < options_.repeats; ++i) {
    speed = probe.measure();
    decodes.add(decode(), decode_cost(model, steps, speed, options_.parallel));
    speed = probe.measure();
    prefills.add(prefill(), prefill_cost(model, prompts, speed, options_.parallel));
  }
  if (world_.rank() != 0) return;
  fmt::print(
      "{} ranks of {} threads: {:.4f} TFLOP/s, {:.1f} GB/s from memory, {:.2f} GB/s sent, {:.1f} us a round and "
      "{:.1f} us a message\n",
      world_.size(), options_.threads, speed.flops / 1e12, speed.bandwidth / 1e9, speed.link / 1e9, speed.latency * 1e6,
      speed.per_message * 1e6);
  prefills.print(
      fmt::format("prefill of {} ({:.2f} MB sent)", options_.prompt, static_cast<double>(prefill_bytes) / 1e6));
  decodes.print(fmt::format("decode at {}", options_.history));
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  bool strided = false;
  CLI::App app("One attention layer of the size of Llama-3-8B's over ranks");
  app.add_option("--cp", options.parallel.cp_degree);
  app.add_option("--dp", options.parallel.attention_dp_degree);
  app.add_flag("--sp", options.parallel.sequence_parallel_enabled);
  app.add_flag("--flash-decoding", options.parallel.flash_decoding_enabled);
  app.add_flag("--deterministic", options.parallel.deterministic);
  app.add_flag("--strided", strided);
  app.add_option("--threads", options.threads);
  app.add_option("--prompt", options.prompt);
  app.add_option("--history", options.history);
  app.add_option("--repeats", options.repeats);
  CLI11_PARSE(app, argc, argv);
  if (strided) options.parallel.context_split = ContextSplit::strided;
  try {
    if (!mpi::launched()) {
      RanksBench(options, Communicator::single()).run();
      return 0;
    }
    const mpi::Session session;
    const auto world = mpi::world(session);
    options.parallel.tp_degree = world->size();
    RanksBench(options, world).run();
  } catch (const Error& error) {
    if (mpi::launched()) mpi::abort(error.what());
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
