// Times are those of the busiest rank, and nothing is taken to overlap: docs/scaling.md.

#include "planning/plan.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "parallel/gqa_sharding.h"
#include "parallel/rank_order.h"
#include "parallel/traffic.h"
#include "regard/mask.h"
#include "tensor/fail.h"

namespace regard {
namespace {

constexpr int64_t kMostRanks = 4096;
constexpr int64_t kMostSequences = int64_t{1} << 20;
constexpr int64_t kMostTokens = int64_t{1} << 24;

double real(int64_t value) { return static_cast<double>(value); }
int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Bytes of a key or value of `width` numbers in a cache: what is quantised has a scale in f32.
double cached_bytes(DType dtype, int64_t width) {
  constexpr double kScale = 4;
  switch (dtype) {
    case DType::i4:
      return real(width) / 2 + kScale;
    case DType::i8:
    case DType::f8_e4m3:
    case DType::f8_e5m2:
      return real(width) + kScale;
    default:
      return real(width) * static_cast<double>(size_of(dtype));
  }
}

// The heads of a layer on one rank of a row.
struct LocalHeads {
  LocalHeads(const AttentionConfig& shape, int64_t row_size, GQA gqa)
      : sharding(shape.num_attention_heads, shape.num_key_value_heads, row_size, gqa),
        queries(sharding.local_heads()),
        keys(sharding.local_kv_heads()) {}

  // Weights of both projections.
  [[nodiscard]] double qkv_weights(const AttentionConfig& s) const {
    return real(s.hidden_size) * real(queries * s.head_dim + keys * (s.head_dim + s.v_head_dim));
  }
  [[nodiscard]] double output_weights(const AttentionConfig& s) const {
    return real(s.hidden_size) * real(queries * s.v_head_dim);
  }
  [[nodiscard]] double weights(const AttentionConfig& s) const { return qkv_weights(s) + output_weights(s); }
  // Operations for a query and a key, for all heads of the rank.
  [[nodiscard]] double pair_flops(const AttentionConfig& s) const {
    return 2 * real(queries * (s.head_dim + s.v_head_dim));
  }
  // Bytes of a cached token.
  [[nodiscard]] double token_bytes(const AttentionConfig& s, DType cache) const {
    return real(keys) * (cached_bytes(cache, s.head_dim) + cached_bytes(cache, s.v_head_dim));
  }
  // Ranks that share the tokens of a KV head: windows and chunks are kept whole.
  [[nodiscard]] int64_t sharing(const AttentionConfig& s, const ParallelConfig& config) const {
    return config.flash_decoding_enabled && !Mask::of(s).reach() ? sharding.kv_copies() : 1;
  }

  GqaSharding sharding;
  int64_t queries;
  int64_t keys;
};

// What a layer computes with, and how many layers are like it.
struct LayerSizes {
  AttentionConfig attention;
  double expert = 0;  // weights of one expert, or of the whole MLP
  int64_t experts = 1;
  int64_t experts_per_token = 1;
  double beside = 0;  // weights that every token passes beside its experts
  int64_t count = 0;
};

LayerSizes sizes_of(const LayerSpec& spec, int64_t count) {
  const int64_t hidden = spec.attention.hidden_size;
  LayerSizes sizes{.attention = spec.attention.validated(), .count = count};
  if (const auto* dense = std::get_if<DenseMlp>(&spec.mlp)) {
    sizes.expert = real(dense->weights(hidden));
    return sizes;
  }
  const auto& mlp = std::get<ExpertsMlp>(spec.mlp);
  sizes.expert = real(mlp.expert.weights(hidden));
  sizes.experts = mlp.experts;
  sizes.experts_per_token = mlp.experts_per_token;
  sizes.beside = mlp.shared ? real(mlp.shared->weights(hidden)) : 0;
  return sizes;
}

std::vector<LayerSizes> sizes_of(const ModelSpec& model) {
  std::vector<LayerSizes> all;
  for (const auto& [layer, count] : model.equal_layers()) all.push_back(sizes_of(*layer, count));
  return all;
}

double phase(const RankSpeed& speed, double flops, double bytes) {
  return std::max(flops / speed.flops, bytes / speed.bandwidth);
}

// A product of `tokens` rows with a matrix: two operations a weight, and every weight is read once.
double product(const RankSpeed& speed, double tokens, double weights, double weight_bytes) {
  return phase(speed, 2 * tokens * weights, weights * weight_bytes);
}

double waiting(const RankSpeed& speed, int64_t rounds, int64_t messages) {
  return real(rounds) * speed.latency + real(messages) * speed.per_message;
}

// Everything but attention layers: all ranks share the matrices evenly, and every MLP ends with a sum over all ranks.
double rest_of_model(const ModelSpec& model, const RankSpeed& speed, const Workload& workload, int64_t ranks,
                     double tokens, double logits, bool sequence_parallel) {
  const double share = 1 / real(ranks);
  const double hidden = real(model.hidden_size);
  double seconds = 0;
  for (const LayerSizes& same : sizes_of(model)) {
    // Tokens choose experts as if by lot, so few tokens touch few experts.
    const double touched = std::min(real(same.experts), tokens * real(same.experts_per_token));
    const double flops = 2 * tokens * (same.expert * real(same.experts_per_token) + same.beside) * share;
    const double bytes = (same.expert * touched + same.beside) * model.bytes_per_weight.mlp * share;
    // One half is the sum; the other its parts, or with sequence parallelism the input.
    const double gathered = sequence_parallel ? real(static_cast<int64_t>(size_of(workload.hidden))) : sizeof(float);
    const double sent = tokens * hidden * (1 - share) * (sizeof(float) + gathered);
    const int64_t exchanges = ranks > 1 ? 2 : 0;
    seconds += real(same.count) *
               (phase(speed, flops, bytes) + sent / speed.link + waiting(speed, exchanges, exchanges * (ranks - 1)));
  }
  return seconds + product(speed, logits, hidden * real(model.vocab_size) * share, model.bytes_per_weight.embedding);
}

void add_traffic(StageCost& cost, const LayerTraffic& traffic, double layers, const RankSpeed& speed) {
  const double bytes = real(traffic.most_of_a_rank()) * layers;
  cost.step_bytes += bytes;
  cost.link += bytes / speed.link;
  cost.latency += waiting(speed, traffic.rounds, traffic.messages) * layers;
}

// Tokens of the fullest row, and pairs of a query and a key that it sees of the busiest one.
struct RowWork {
  double tokens = 0;
  double pairs = 0;
};

RowWork prefill_work(const Mask& mask, int64_t prompt, const ParallelConfig& config) {
  const int64_t rows = config.cp_degree;
  std::vector<double> pairs(static_cast<size_t>(rows));
  for (int64_t token = 0; token < prompt; ++token) {
    const int64_t row =
        config.context_split == ContextSplit::strided ? token % rows : ((token + 1) * rows - 1) / prompt;
    pairs[static_cast<size_t>(row)] += real(mask.visible(token, prompt).size());
  }
  return {.tokens = real(ceil_div(prompt, rows)), .pairs = *std::ranges::max_element(pairs)};
}

// Sequences of each row of decode.
std::vector<TokenRun> decode_runs(const Workload& workload, int64_t rows) {
  std::vector<TokenRun> runs;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t count = workload.sequences * (row + 1) / rows - workload.sequences * row / rows;
    runs.push_back({.first = workload.context - 1, .count = count, .row = row});
  }
  return runs;
}

// Keys that a new token sees: what a cache has to hold of a sequence.
int64_t keys_seen(const Mask& mask, const Workload& workload) {
  return mask.visible(workload.context - 1, workload.context).size();
}

bool can_be_ordered(const ModelSpec& model, const ParallelConfig& config) {
  try {
    for (const LayerSpec& layer : model.layers)
      (void)rank_orders(config.tp_degree, config.cp_degree, config.attention_dp_degree,
                        layer.attention.num_key_value_heads, config.switch_cc);
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::vector<int64_t> divisors(int64_t number, int64_t most) {
  std::vector<int64_t> found;
  for (int64_t divisor = 1; divisor <= std::min(number, most); ++divisor)
    if (number % divisor == 0) found.push_back(divisor);
  return found;
}

// What one stage has to choose from. The other stage's fields of `config` mean nothing, but for its rows.
struct Choice {
  ParallelConfig config;
  StageCost cost;
};

// The fastest of some ways to do the same; cost(config) tells.
template <class Cost>
Choice fastest(std::span<const ParallelConfig> ways, Cost cost) {
  std::vector<Choice> choices;
  for (const ParallelConfig& config : ways) choices.push_back({config, cost(config)});
  return *std::ranges::min_element(choices, {}, [](const Choice& choice) { return choice.cost.seconds(); });
}

std::vector<Choice> prefill_choices(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                                    int64_t ranks, int64_t decode_rows) {
  std::vector<Choice> choices;
  for (const int64_t rows : divisors(ranks, workload.prompt)) {
    if (!can_be_ordered(model, {.tp_degree = ranks, .cp_degree = rows, .attention_dp_degree = decode_rows})) continue;
    for (const bool sequence_parallel : {false, true}) {
      if (sequence_parallel && ranks == 1) continue;
      std::vector<ParallelConfig> ways{{.tp_degree = ranks,
                                        .cp_degree = rows,
                                        .attention_dp_degree = decode_rows,
                                        .sequence_parallel_enabled = sequence_parallel}};
      if (rows > 1) ways.emplace_back(ParallelConfig(ways.front())).context_split = ContextSplit::strided;
      choices.push_back(
          fastest(ways, [&](const ParallelConfig& config) { return prefill_cost(model, workload, speed, config); }));
    }
  }
  return choices;
}

bool shares_heads(const ModelSpec& model, int64_t row_size) {
  return std::ranges::any_of(sizes_of(model), [&](const LayerSizes& same) {
    return LocalHeads(same.attention, row_size, GQA::REPLICATE_TO_TP_DEGREE)
               .sharing(same.attention, {.flash_decoding_enabled = true}) > 1;
  });
}

std::vector<Choice> decode_choices(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                                   int64_t ranks, int64_t rows) {
  std::vector<Choice> choices;
  for (const bool flash : {false, true}) {
    if (flash && !shares_heads(model, ranks / rows)) continue;
    std::vector<ParallelConfig> ways{
        {.tp_degree = ranks, .attention_dp_degree = rows, .flash_decoding_enabled = flash}};
    if (rows > 1)
      for (const auto dispatch : {OutputDispatch::RS_AG, OutputDispatch::AG_AR})
        ways.emplace_back(ParallelConfig(ways.front())).output_dispatch = dispatch;
    choices.push_back(
        fastest(ways, [&](const ParallelConfig& config) { return decode_cost(model, workload, speed, config); }));
  }
  return choices;
}

Plan combined(const ModelSpec& model, const Workload& workload, const Choice& prefill, const Choice& decode) {
  Plan plan{.config = prefill.config, .memory = {}, .prefill = prefill.cost, .decode = decode.cost};
  plan.config.flash_decoding_enabled = decode.config.flash_decoding_enabled;
  plan.config.output_dispatch = decode.config.output_dispatch;
  plan.memory = rank_memory(model, workload, plan.config);
  plan.seconds = real(workload.sequences) * plan.prefill.seconds() + real(workload.output) * plan.decode.seconds();
  return plan;
}

}  // namespace

void RankSpeed::check() const {
  for (const double rate : {flops, bandwidth, link})
    require(std::isfinite(rate) && rate > 0, "plan: a rate of ranks is {}, expected more than 0", rate);
  for (const double time : {latency, per_message})
    require(std::isfinite(time) && time >= 0, "plan: a latency of ranks is {}, expected 0 or more", time);
}

void Workload::check() const {
  const auto check_number = [](std::string_view name, int64_t value, int64_t least, int64_t most) {
    require(value >= least && value <= most, "plan: {} is {}, expected {} to {}", name, value, least, most);
  };
  check_number("the number of sequences", sequences, 1, kMostSequences);
  check_number("the context", context, 1, kMostTokens);
  check_number("the prompt", prompt, 1, context);
  check_number("the output", output, 0, kMostTokens);
}

RankMemory rank_memory(const ModelSpec& model, const Workload& workload, const ParallelConfig& config) {
  RankMemory memory;
  double attention = 0;  // weights that all ranks together have once
  for (const LayerSizes& same : sizes_of(model)) {
    const AttentionConfig& shape = same.attention;
    const double layers = real(same.count);
    const int64_t rows = config.attention_dp_degree;
    const LocalHeads decode(shape, config.tp_degree / rows, config.gqa);
    double weights = decode.weights(shape);
    if (config.cp_degree != rows)
      weights += LocalHeads(shape, config.tp_degree / config.cp_degree, config.gqa).weights(shape);
    memory.attention_weights += layers * weights * model.bytes_per_weight.attention;
    const int64_t tokens = ceil_div(keys_seen(Mask::of(shape), workload), decode.sharing(shape, config));
    memory.cache +=
        layers * real(ceil_div(workload.sequences, rows)) * real(tokens) * decode.token_bytes(shape, workload.cache);
    attention += layers * LocalHeads(shape, 1, config.gqa).weights(shape) * model.bytes_per_weight.attention;
  }
  memory.other_weights = (model.weight_bytes() - attention) / real(config.tp_degree);
  return memory;
}

StageCost prefill_cost(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                       const ParallelConfig& config) {
  workload.check();
  speed.check();
  StageCost cost;
  for (const LayerSizes& same : sizes_of(model)) {
    const AttentionConfig& shape = same.attention;
    const double layers = real(same.count);
    const LocalHeads heads(shape, config.tp_degree / config.cp_degree, config.gqa);
    const RowWork work = prefill_work(Mask::of(shape), workload.prompt, config);
    const double keys_read = real(workload.prompt) * heads.token_bytes(shape, workload.cache);
    const double layer = product(speed, work.tokens, heads.qkv_weights(shape), model.bytes_per_weight.attention) +
                         phase(speed, work.pairs * heads.pair_flops(shape), keys_read) +
                         product(speed, work.tokens, heads.output_weights(shape), model.bytes_per_weight.attention);
    cost.compute += layers * layer;
    const LayerCall call{
        .attention = shape, .runs = {{0, workload.prompt}}, .hidden = workload.hidden, .cache = workload.cache};
    add_traffic(cost, prefill_traffic(call, config), layers, speed);
  }
  cost.layer_bytes = cost.step_bytes / real(std::ssize(model.layers));
  cost.rest = rest_of_model(model, speed, workload, config.tp_degree, real(workload.prompt), 1,
                            config.sequence_parallel_enabled);
  return cost;
}

StageCost decode_cost(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                      const ParallelConfig& config) {
  workload.check();
  speed.check();
  StageCost cost;
  const int64_t rows = config.attention_dp_degree;
  const double sequences = real(ceil_div(workload.sequences, rows));
  for (const LayerSizes& same : sizes_of(model)) {
    const AttentionConfig& shape = same.attention;
    const double layers = real(same.count);
    const LocalHeads heads(shape, config.tp_degree / rows, config.gqa);
    const int64_t sharing = heads.sharing(shape, config);
    const double keys = real(ceil_div(keys_seen(Mask::of(shape), workload), sharing));
    // Ranks that share the tokens of a head each do all queries of the group.
    const double flops = sequences * keys * heads.pair_flops(shape) * real(sharing);
    const double bytes = sequences * keys * heads.token_bytes(shape, workload.cache);
    const double layer = product(speed, sequences, heads.qkv_weights(shape), model.bytes_per_weight.attention) +
                         phase(speed, flops, bytes) +
                         product(speed, sequences, heads.output_weights(shape), model.bytes_per_weight.attention);
    cost.compute += layers * layer;
    const LayerCall call{
        .attention = shape, .runs = decode_runs(workload, rows), .hidden = workload.hidden, .cache = workload.cache};
    add_traffic(cost, decode_traffic(call, config), layers, speed);
  }
  cost.layer_bytes = cost.step_bytes / real(std::ssize(model.layers));
  cost.rest = rest_of_model(model, speed, workload, config.tp_degree, real(workload.sequences),
                            real(workload.sequences), false);
  return cost;
}

std::vector<Plan> plans(const ModelSpec& model, const Workload& workload, const RankSpeed& speed, int64_t ranks) {
  workload.check();
  require(ranks >= 1 && ranks <= kMostRanks, "plan: the number of ranks is {}, expected 1 to {}", ranks, kMostRanks);
  std::vector<Plan> all;
  // Which rows of prefill get a sequence's keys depends on the row of decode that keeps it.
  for (const int64_t rows : divisors(ranks, workload.sequences)) {
    const auto prefills = prefill_choices(model, workload, speed, ranks, rows);
    for (const Choice& decode : decode_choices(model, workload, speed, ranks, rows))
      for (const Choice& prefill : prefills) all.push_back(combined(model, workload, prefill, decode));
  }
  std::ranges::stable_sort(all, {}, &Plan::seconds);
  return all;
}

}  // namespace regard
