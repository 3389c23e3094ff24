// Times are those of the busiest rank, and nothing is taken to overlap: docs/scaling.md.

#include "planning/plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "parallel/even_parts.h"
#include "parallel/gqa_sharding.h"
#include "parallel/traffic.h"
#include "planning/model_traffic.h"
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

// Columns of an MLP's width on one rank.
using WidthPart = std::function<int64_t(int64_t width)>;

// What one rank has of a layer's MLP.
struct MlpSizes {
  MlpSizes(const std::variant<DenseMlp, ExpertsMlp>& mlp, int64_t hidden, const WidthPart& part) {
    const auto weights = [&](DenseMlp dense) {
      dense.width = part(dense.width);
      return real(dense.weights(hidden));
    };
    if (const auto* dense = std::get_if<DenseMlp>(&mlp)) {
      expert = weights(*dense);
      return;
    }
    const auto& spec = std::get<ExpertsMlp>(mlp);
    expert = weights(spec.expert);
    experts = real(spec.experts);
    experts_per_token = real(spec.experts_per_token);
    beside = real(spec.experts * hidden) + (spec.shared ? weights(*spec.shared) : 0);
  }

  [[nodiscard]] double weights() const { return expert * experts + beside; }

  double expert = 0;  // weights of one expert, or of the whole MLP
  double experts = 1;
  double experts_per_token = 1;
  double beside = 0;  // that every token passes beside its experts: the whole router, and the shared MLP
};

// A kind of layer, and how many there are.
struct LayerSizes {
  AttentionConfig attention;
  const LayerSpec* spec = nullptr;
  int64_t count = 0;
};

std::vector<LayerSizes> sizes_of(const ModelSpec& model) {
  std::vector<LayerSizes> all;
  for (const auto& [layer, count] : model.equal_layers())
    all.push_back({.attention = layer->attention.validated(), .spec = layer, .count = count});
  return all;
}

// The columns of the rank that has most.
int64_t most_columns(int64_t width, int64_t ranks) {
  int64_t most = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) most = std::max(most, mlp_part_of(width, ranks, rank).count);
  return most;
}

double phase(const RankSpeed& speed, double flops, double bytes) {
  return std::max(flops / speed.flops, bytes / speed.bandwidth);
}

// A product of `tokens` rows with a matrix: two operations a weight, and every weight is read once.
double product(const RankSpeed& speed, double tokens, double weights, double weight_bytes) {
  return phase(speed, 2 * tokens * weights, weights * weight_bytes);
}

// Seconds that the busiest rank sends.
double sending(const RankSpeed& speed, const LayerTraffic& traffic) {
  double most = 0;
  for (size_t rank = 0; rank < traffic.ranks.size(); ++rank) {
    const int64_t between_hosts = traffic.between_hosts[rank];
    const int64_t inside = traffic.ranks[rank].total() - between_hosts;
    most = std::max(most, real(inside) / speed.host_link + real(between_hosts) / speed.link);
  }
  return most;
}

double waiting(const RankSpeed& speed, const LayerTraffic& traffic) {
  return real(traffic.rounds - traffic.rounds_between_hosts) * speed.host_latency +
         real(traffic.rounds_between_hosts) * speed.latency + real(traffic.messages) * speed.per_message;
}

// Arithmetic of MLPs, which the rank with most columns does the longest, and of the output head, which all ranks have.
double compute_rest(const ModelSpec& model, const RankSpeed& speed, int64_t ranks, double tokens, double logits) {
  double seconds = 0;
  for (const LayerSizes& same : sizes_of(model)) {
    const MlpSizes mlp(same.spec->mlp, model.hidden_size, [&](int64_t width) { return most_columns(width, ranks); });
    // Tokens choose experts as if by lot, so few tokens touch few experts.
    const double touched = std::min(mlp.experts, tokens * mlp.experts_per_token);
    const double flops = 2 * tokens * (mlp.expert * mlp.experts_per_token + mlp.beside);
    const double bytes = (mlp.expert * touched + mlp.beside) * model.bytes_per_weight.mlp;
    seconds += real(same.count) * phase(speed, flops, bytes);
  }
  return seconds + product(speed, logits, real(model.hidden_size * model.vocab_size), model.bytes_per_weight.embedding);
}

// What ranks send, and how long everything but the attention layers' arithmetic takes.
void add_traffic(StageCost& cost, const ModelSpec& model, const RankSpeed& speed, const ModelTraffic& traffic) {
  cost.link = sending(speed, traffic.attention);
  cost.latency = waiting(speed, traffic.attention);
  cost.rest += sending(speed, traffic.rest) + waiting(speed, traffic.rest);
  cost.layer_bytes = real(traffic.attention.most_of_a_rank()) / real(std::ssize(model.layers));
  cost.step_bytes = real(traffic.most_of_a_rank());
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

// Sequences of each row of decode, a token each: rows are filled one after the other.
std::vector<TokenRun> decode_runs(const Workload& workload, int64_t rows) {
  const int64_t slots = ceil_div(workload.sequences, rows);
  std::vector<TokenRun> runs;
  for (int64_t row = 0; row < rows; ++row)
    runs.push_back({.first = workload.context - 1,
                    .count = std::clamp<int64_t>(workload.sequences - row * slots, 0, slots),
                    .row = row});
  return runs;
}

// Keys that a new token sees: what a cache has to hold of a sequence.
int64_t keys_seen(const Mask& mask, const Workload& workload) {
  return mask.visible(workload.context - 1, workload.context).size();
}

std::vector<int64_t> divisors(int64_t number, int64_t most) {
  std::vector<int64_t> found;
  for (int64_t divisor = 1; divisor <= std::min(number, most); ++divisor)
    if (number % divisor == 0) found.push_back(divisor);
  return found;
}

// The way to run a stage that is the fastest, and what it costs.
struct Choice {
  ParallelConfig config;
  StageCost cost;
};

// The fastest of some ways to do the same; cost(config) tells.
template <class Cost>
Choice fastest(std::span<const ParallelConfig> ways, const Cost& cost) {
  std::vector<Choice> choices;
  for (const ParallelConfig& config : ways) choices.push_back({config, cost(config)});
  return *std::ranges::min_element(choices, {}, [](const Choice& choice) { return choice.cost.seconds(); });
}

Choice fastest_prefill(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                       const ParallelConfig& config) {
  std::vector<ParallelConfig> ways{config};
  if (config.cp_degree > 1) ways.emplace_back(config).context_split = ContextSplit::strided;
  return fastest(ways, [&](const ParallelConfig& way) { return prefill_cost(model, workload, speed, way); });
}

// With sequence parallelism there is no output to bring together.
Choice fastest_decode(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                      const ParallelConfig& config) {
  std::vector<ParallelConfig> ways{config};
  if (config.attention_dp_degree > 1 && !config.sequence_parallel_enabled)
    for (const auto dispatch : {OutputDispatch::RS_AG, OutputDispatch::AG_AR})
      ways.emplace_back(config).output_dispatch = dispatch;
  return fastest(ways, [&](const ParallelConfig& way) { return decode_cost(model, workload, speed, way); });
}

bool shares_heads(const ModelSpec& model, int64_t row_size) {
  return std::ranges::any_of(sizes_of(model), [&](const LayerSizes& same) {
    return LocalHeads(same.attention, row_size, GQA::REPLICATE_TO_TP_DEGREE)
               .sharing(same.attention, {.flash_decoding_enabled = true}) > 1;
  });
}

// What both stages have in common: rows of decode, and what they share.
std::vector<ParallelConfig> decode_layouts(const ModelSpec& model, const Workload& workload, int64_t ranks) {
  std::vector<ParallelConfig> layouts;
  for (const int64_t rows : divisors(ranks, workload.sequences)) {
    // Rows are filled one after the other: of 9 sequences and 8 rows, four rows get two, and three none.
    if (ceil_div(workload.sequences, ceil_div(workload.sequences, rows)) < rows) continue;
    for (const bool sequence_parallel : {false, true})
      for (const bool flash : {false, true})
        if ((!sequence_parallel || ranks > 1) && (!flash || shares_heads(model, ranks / rows)))
          layouts.push_back({.tp_degree = ranks,
                             .attention_dp_degree = rows,
                             .sequence_parallel_enabled = sequence_parallel,
                             .flash_decoding_enabled = flash});
  }
  return layouts;
}

Plan combined(const ModelSpec& model, const Workload& workload, const Choice& prefill, const Choice& decode) {
  Plan plan{.config = prefill.config, .memory = {}, .prefill = prefill.cost, .decode = decode.cost};
  plan.config.output_dispatch = decode.config.output_dispatch;
  plan.memory = rank_memory(model, workload, plan.config);
  plan.seconds = real(workload.sequences) * plan.prefill.seconds() + real(workload.output) * plan.decode.seconds();
  return plan;
}

}  // namespace

void RankSpeed::check() const {
  for (const double rate : {flops, bandwidth, link, host_link})
    require(std::isfinite(rate) && rate > 0, "plan: a rate of ranks is {}, expected more than 0", rate);
  for (const double time : {latency, per_message, host_latency})
    require(std::isfinite(time) && time >= 0, "plan: a latency of ranks is {}, expected 0 or more", time);
  require(ranks_per_host >= 1, "plan: the number of ranks on a host is {}, expected 1 or more", ranks_per_host);
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
  std::vector<double> mlps(static_cast<size_t>(config.tp_degree));
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
    for (int64_t rank = 0; rank < config.tp_degree; ++rank) {
      const MlpSizes mlp(same.spec->mlp, model.hidden_size,
                         [&](int64_t width) { return mlp_part_of(width, config.tp_degree, rank).count; });
      mlps[static_cast<size_t>(rank)] += layers * mlp.weights() * model.bytes_per_weight.mlp;
    }
  }
  const double matrices = model.head.tied ? 1 : 2;
  memory.other_weights = *std::ranges::max_element(mlps) +
                         matrices * real(model.hidden_size * model.vocab_size) * model.bytes_per_weight.embedding;
  return memory;
}

StageCost prefill_cost(const ModelSpec& model, const Workload& workload, const RankSpeed& speed,
                       const ParallelConfig& config) {
  workload.check();
  speed.check();
  StageCost cost;
  for (const LayerSizes& same : sizes_of(model)) {
    const AttentionConfig& shape = same.attention;
    const LocalHeads heads(shape, config.tp_degree / config.cp_degree, config.gqa);
    const RowWork work = prefill_work(Mask::of(shape), workload.prompt, config);
    const double keys_read = real(workload.prompt) * heads.token_bytes(shape, workload.cache);
    const double layer = product(speed, work.tokens, heads.qkv_weights(shape), model.bytes_per_weight.attention) +
                         phase(speed, work.pairs * heads.pair_flops(shape), keys_read) +
                         product(speed, work.tokens, heads.output_weights(shape), model.bytes_per_weight.attention);
    cost.compute += real(same.count) * layer;
  }
  cost.rest = compute_rest(model, speed, config.tp_degree, real(workload.prompt), 1);
  add_traffic(
      cost, model, speed,
      model_traffic(model, Stage::prefill, {{0, workload.prompt}}, workload.cache, config, speed.ranks_per_host));
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
    const LocalHeads heads(shape, config.tp_degree / rows, config.gqa);
    const int64_t sharing = heads.sharing(shape, config);
    const double keys = real(ceil_div(keys_seen(Mask::of(shape), workload), sharing));
    // Ranks that share the tokens of a head each do all queries of the group.
    const double flops = sequences * keys * heads.pair_flops(shape) * real(sharing);
    const double bytes = sequences * keys * heads.token_bytes(shape, workload.cache);
    const double layer = product(speed, sequences, heads.qkv_weights(shape), model.bytes_per_weight.attention) +
                         phase(speed, flops, bytes) +
                         product(speed, sequences, heads.output_weights(shape), model.bytes_per_weight.attention);
    cost.compute += real(same.count) * layer;
  }
  const double all = real(workload.sequences);
  cost.rest = compute_rest(model, speed, config.tp_degree, all, all);
  add_traffic(
      cost, model, speed,
      model_traffic(model, Stage::decode, decode_runs(workload, rows), workload.cache, config, speed.ranks_per_host));
  return cost;
}

std::vector<Plan> plans(const ModelSpec& model, const Workload& workload, const RankSpeed& speed, int64_t ranks) {
  workload.check();
  require(ranks >= 1 && ranks <= kMostRanks, "plan: the number of ranks is {}, expected 1 to {}", ranks, kMostRanks);
  std::vector<Plan> all;
  for (const ParallelConfig& layout : decode_layouts(model, workload, ranks)) {
    const Choice decode = fastest_decode(model, workload, speed, layout);
    for (const int64_t rows : divisors(ranks, workload.prompt)) {
      ParallelConfig config = layout;
      config.cp_degree = rows;
      all.push_back(combined(model, workload, fastest_prefill(model, workload, speed, config), decode));
    }
  }
  std::ranges::stable_sort(all, {}, &Plan::seconds);
  return all;
}

}  // namespace regard
