#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "cli/bench/measure.h"
#include "cli/bench/shape.h"
#include "kernels/panel.h"
#include "regard/attend.h"
#include "regard/attention.h"
#include "regard/block_table.h"
#include "regard/checkpoint.h"
#include "regard/linear.h"
#include "regard/model.h"
#include "tensor/fail.h"

namespace regard::cli {
namespace {

// Numbers in -scale..scale, the same on every run.
Tensor random_tensor(DType dtype, const Shape& shape, float scale = 1.0F) {
  Tensor numbers(DType::f32, shape);
  std::minstd_rand generator(1);
  for (float& value : numbers.elements<float>())
    value = scale * (static_cast<float>(generator()) / static_cast<float>(std::minstd_rand::max()) * 2 - 1);
  return dtype == DType::f32 ? numbers : convert(numbers, dtype);
}

// ---- attention: keys and values appended to a cache, then attended to ----

struct AttentionBench {
  AttentionShape shape;
  std::vector<KvCache> caches;
  size_t next = 0;
  Tensor queries, keys, values, output;
  std::vector<float> sinks;
  std::vector<Span> spans;

  explicit AttentionBench(const AttentionShape& s)
      : shape(s),
        queries(random_tensor(activation(s), {s.batch * s.queries(), s.heads, s.head_dim}, 2)),
        keys(random_tensor(DType::f32, {s.length, s.kv_heads, s.head_dim}, 2)),
        values(random_tensor(DType::f32, {s.length, s.kv_heads, s.v_head_dim})),
        output(activation(s), {s.batch * s.queries(), s.heads, s.v_head_dim}),
        sinks(s.sink ? static_cast<size_t>(s.heads) : 0) {
    for (int64_t slot = 0; slot < s.batch; ++slot)
      spans.push_back({.slot = slot, .first_position = s.length - s.queries(), .count = s.queries()});
    for (int64_t i = 0; i < cache_count(s); ++i) {
      caches.push_back(make_cache(s));
      append(caches.back(), Threads());
    }
  }

  // Decode goes round as many caches as memory beyond the last level holds, as the layers of a model do: a cache that
  // stays in the processor would be read faster than any model can.
  static int64_t cache_count(const AttentionShape& s) {
    if (s.stage == AttentionShape::Stage::prefill) return 1;
    return 1 + 4 * CacheSizes::of_machine().last_level / static_cast<int64_t>(s.bytes());
  }

  static KvCache make_cache(const AttentionShape& s) {
    const KvCacheOptions options{.slots = s.batch, .capacity = s.length, .dtype = s.dtype, .page_size = s.page_size};
    if (s.page_size == 0) return KvCache::contiguous(options, config(s));
    KvCache cache = KvCache::paged(options, config(s));
    const std::vector<int32_t> pages = page_order(s, cache.block_tables().pages());
    const auto own = static_cast<int64_t>(pages.size()) / s.batch;
    for (int64_t slot = 0; slot < s.batch; ++slot)
      cache.block_tables().reserve(slot,
                                   std::span(pages).subspan(static_cast<size_t>(slot * own), static_cast<size_t>(own)));
    return cache;
  }

  // Pages in random order, but for those that a pool would give a sequence side by side: a block of keys.
  static std::vector<int32_t> page_order(const AttentionShape& s, int64_t count) {
    const int64_t group = s.scattered ? 1 : std::max<int64_t>(1, kernels::kBlock / s.page_size);
    std::vector<int64_t> groups(static_cast<size_t>((count + group - 1) / group));
    std::iota(groups.begin(), groups.end(), 0);
    std::ranges::shuffle(groups, std::mt19937(1));  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same ones every time
    std::vector<int32_t> pages;
    pages.reserve(static_cast<size_t>(count));
    for (const int64_t each : groups)
      for (int64_t page = each * group; page < std::min(count, (each + 1) * group); ++page)
        pages.push_back(static_cast<int32_t>(page));
    return pages;
  }

  void append(KvCache& cache, const Threads& threads) const {
    for (int64_t slot = 0; slot < shape.batch; ++slot)
      cache.append({.slot = slot, .first_position = 0, .count = shape.length}, keys, values, threads);
  }

  void run(Workspace& workspace) {
    KvCache& cache = caches[next];
    next = (next + 1) % caches.size();
    if (shape.stage == AttentionShape::Stage::prefill) append(cache, workspace.threads());
    attend({.queries = queries,
            .spans = spans,
            .cache = &cache,
            .mask = shape.mask,
            .sinks = sinks,
            .output = output,
            .workspace = &workspace});
  }

  static DType activation(const AttentionShape& s) {
    return s.dtype == DType::bf16 || s.dtype == DType::f16 ? s.dtype : DType::f32;
  }
  static AttentionConfig config(const AttentionShape& s) {
    AttentionConfig config;
    config.hidden_size = s.heads * s.head_dim;
    config.num_attention_heads = s.heads;
    config.num_key_value_heads = s.kv_heads;
    config.head_dim = s.head_dim;
    config.v_head_dim = s.v_head_dim;
    return config;
  }
};

// ---- layer: a whole layer of Llama-3-8B's size ----

constexpr int64_t kHidden = 4096;
constexpr int64_t kHeads = 32;
constexpr int64_t kKvHeads = 8;

struct LayerBench {
  Workspace& workspace;
  Attention attention;
  KvCache cache;
  Tensor hidden, output;
  Span span;

  LayerBench(DType dtype, int64_t history, int64_t tokens, Workspace& space)
      : workspace(space),
        attention(load(dtype, history + tokens, space)),
        cache(attention.make_cache(KvStorage::contiguous, attention.cache_options())),
        hidden(random_tensor(dtype, {tokens, kHidden})),
        output(dtype, {tokens, kHidden}),
        span{.slot = 0, .first_position = history, .count = tokens} {
    if (history == 0) return;
    const Tensor keys = random_tensor(DType::f32, {history, kKvHeads, kHidden / kHeads});
    cache.append({.slot = 0, .first_position = 0, .count = history}, keys, keys);
  }

  static Attention load(DType dtype, int64_t length, const Workspace& space) {
    AttentionConfig config;
    config.hidden_size = kHidden;
    config.num_attention_heads = kHeads;
    config.num_key_value_heads = kKvHeads;
    config.rotary_emb = RotaryConfig{.rope_theta = 500000};
    config.inference.torch_dtype = dtype;
    config.inference.seq_len = length;
    constexpr int64_t kKvRows = kHidden / kHeads * kKvHeads;
    const Tensor square = random_tensor(dtype, {kHidden, kHidden}, 0.05F);
    const ConstTensorView all = square;
    const auto rows = [&](int64_t count) {
      const auto part = all.slice(0, 0, count);
      const auto bytes = static_cast<size_t>(part.shape().elements()) * size_of(dtype);
      return WeightView::make(weight_type_of(dtype), count, kHidden, {part.data(), bytes});
    };
    AttentionWeights weights;
    weights.qkv.q = weights.output = rows(kHidden);
    weights.qkv.k = weights.qkv.v = rows(kKvRows);
    return Attention::load(weights, config, space.threads());
  }

  void run() {
    AttentionInput input;
    input.hidden_states = hidden;
    input.spans = {&span, 1};
    input.cache = &cache;
    input.output = output;
    input.workspace = &workspace;
    (void)attention.forward(input);
  }
};

BenchCase layer_case(DType dtype, int64_t history, int64_t tokens) {
  constexpr int64_t kHeadDim = kHidden / kHeads;
  constexpr double kWeights = 2.0 * kHidden * kHidden + 2.0 * kHidden * kHeadDim * kKvHeads;
  const auto count = static_cast<double>(tokens);
  const double keys = count * static_cast<double>(history) + count * (count + 1) / 2;
  const double bytes = static_cast<double>(size_of(dtype)) *
                       (kWeights + static_cast<double>(history + tokens) * 2.0 * kHeadDim * kKvHeads);
  return {.shape = history == 0 ? fmt::format("layer:prefill:{}:s{}", name_of(dtype), tokens)
                                : fmt::format("layer:decode:{}:l{}", name_of(dtype), history + tokens),
          .operations = 2 * kWeights * count + 4 * keys * kHidden,
          .bytes = bytes,
          .prepare = [=](Workspace& workspace) -> std::function<void()> {
            const auto bench = std::make_shared<LayerBench>(dtype, history, tokens, workspace);
            return [bench] { bench->run(); };
          }};
}

// ---- projection: one weight matrix of Llama-3-8B's size ----

struct ProjectionBench {
  std::vector<Linear> layers;
  size_t next = 0;
  Tensor input, output;

  ProjectionBench(WeightType type, int64_t tokens, const Workspace& workspace)
      : input(random_tensor(DType::f32, {tokens, kHidden})), output(DType::f32, {tokens, kHidden}) {
    // Random bits are weights of any type but the floating-point ones, whose exponents they would scatter.
    const int64_t block = block_of(type).values;
    std::vector<std::byte> bytes(static_cast<size_t>(kHidden * kHidden / block * block_of(type).bytes));
    const Tensor numbers = random_tensor(type == WeightType::bf16  ? DType::bf16
                                         : type == WeightType::f16 ? DType::f16
                                                                   : DType::f32,
                                         {static_cast<int64_t>(bytes.size()) / 2});
    std::memcpy(bytes.data(), numbers.view().data(), bytes.size());
    if (block > 1) std::ranges::fill(bytes, std::byte{0x2C});  // f16 scales of 0.066
    const WeightView weights = WeightView::make(type, kHidden, kHidden, bytes);
    // As many as do not stay in the processor from one run to the next.
    const int64_t count =
        tokens > 64 ? 1 : 1 + 4 * CacheSizes::of_machine().last_level / static_cast<int64_t>(bytes.size());
    for (int64_t i = 0; i < count; ++i) layers.push_back(Linear::load(weights, {}, workspace.threads()));
  }

  void run(Workspace& workspace) {
    const std::array<const Linear*, 1> layer = {&layers[next]};
    next = (next + 1) % layers.size();
    apply(layer, input, std::array<TensorView, 1>{output}, workspace);
  }
};

BenchCase projection_case(WeightType type, int64_t tokens) {
  const auto elements = static_cast<double>(kHidden * kHidden);
  return {.shape = fmt::format("projection:{}:m{}", name_of(type), tokens),
          .operations = 2 * elements * static_cast<double>(tokens),
          .bytes = elements * static_cast<double>(block_of(type).bytes) / static_cast<double>(block_of(type).values),
          .prepare = [=](Workspace& workspace) -> std::function<void()> {
            const auto bench = std::make_shared<ProjectionBench>(type, tokens, workspace);
            return [bench, &workspace] { bench->run(workspace); };
          }};
}

// ---- decoder: a whole model ----

// Writes a random model of SmolLM2-135M's shape and loads it. The file is gone when this returns.
Model random_decoder(const Threads& threads) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("regard-bench-{}", std::random_device{}());
  std::filesystem::create_directories(folder);
  const std::shared_ptr<void> cleanup(nullptr, [&](void*) { std::filesystem::remove_all(folder); });
  constexpr int64_t kWidth = 576;
  constexpr int64_t kMlp = 1536;
  constexpr int64_t kKvWidth = 192;
  constexpr int64_t kVocabulary = 49152;
  constexpr int kLayers = 30;
  std::ofstream(folder / "config.json") << nlohmann::json{
      {"model_type", "llama"},       {"num_hidden_layers", kLayers},    {"hidden_size", kWidth},
      {"intermediate_size", kMlp},   {"vocab_size", kVocabulary},       {"num_attention_heads", 9},
      {"num_key_value_heads", 3},    {"max_position_embeddings", 8192}, {"rope_theta", 100000.0},
      {"tie_word_embeddings", true}, {"torch_dtype", "bfloat16"}};
  const Tensor table = random_tensor(DType::bf16, {kVocabulary, kWidth}, 0.05F);
  const ConstTensorView numbers = table;
  const auto matrix = [&](int64_t rows, int64_t columns) {
    return numbers.slice(0, 0, rows * columns / kWidth).reshape({rows, columns});
  };
  std::vector<NamedTensor> tensors = {{"model.embed_tokens.weight", numbers}, {"model.norm.weight", numbers[0]}};
  for (int layer = 0; layer < kLayers; ++layer) {
    const auto add = [&](const char* part, ConstTensorView tensor) {
      tensors.push_back({fmt::format("model.layers.{}.{}.weight", layer, part), tensor});
    };
    add("input_layernorm", numbers[0]);
    add("post_attention_layernorm", numbers[0]);
    add("self_attn.q_proj", matrix(kWidth, kWidth));
    add("self_attn.k_proj", matrix(kKvWidth, kWidth));
    add("self_attn.v_proj", matrix(kKvWidth, kWidth));
    add("self_attn.o_proj", matrix(kWidth, kWidth));
    add("mlp.gate_proj", matrix(kMlp, kWidth));
    add("mlp.up_proj", matrix(kMlp, kWidth));
    add("mlp.down_proj", matrix(kWidth, kMlp));
  }
  save_safetensors(folder / "model.safetensors", tensors);
  return Model::load(Checkpoint::open(folder), threads);
}

struct DecoderBench {
  std::shared_ptr<const Model> decoder;
  std::vector<KvCache> caches;
  std::vector<int32_t> tokens;
  Span span;

  DecoderBench(const std::shared_ptr<const Model>& model, int64_t history, int64_t count, DType cache_dtype,
               Workspace& workspace)
      : decoder(model),
        caches(decoder->make_caches({.slots = 1, .capacity = history + count, .dtype = cache_dtype})),
        tokens(static_cast<size_t>(std::max(history, count)), 1),
        span{.slot = 0, .first_position = history, .count = count} {
    if (history > 0) forward({.slot = 0, .first_position = 0, .count = history}, workspace);
  }

  void forward(const Span& part, Workspace& workspace) {
    const std::span<const int32_t> ids(tokens.data(), static_cast<size_t>(part.count));
    (void)decoder->forward(ids, {&part, 1}, caches, {.logits = Model::Logits::last_of_each_span}, workspace);
  }
};

BenchCase decoder_case(const std::shared_ptr<const Model>& decoder, int64_t history, int64_t tokens,
                       DType cache_dtype) {
  BenchCase bench{.shape = tokens > 1 ? fmt::format("decoder:prefill:s{}", tokens)
                                      : fmt::format("decoder:decode:l{}", history + tokens)};
  const ModelCost cost = decoder->cost(history, tokens, cache_dtype);
  bench.operations = cost.operations;
  bench.bytes = cost.bytes;
  bench.prepare = [=](Workspace& workspace) -> std::function<void()> {
    const auto state = std::make_shared<DecoderBench>(decoder, history, tokens, cache_dtype, workspace);
    return [state, &workspace] { state->forward(state->span, workspace); };
  };
  return bench;
}

// Decode at each length and type, as the claims of docs/performance.md name them.
constexpr std::array kAttentionCases = {
    "prefill:f32:b1:h32:kv8:d128:s2048",       "prefill:bf16:b1:h32:kv8:d128:s2048",
    "prefill:f16:b1:h32:kv8:d128:s2048",       "prefill:f32:b1:h9:kv3:d64:s8192",
    "prefill:f32:b4:h16:kv8:d128:s512",        "prefill:f32:b1:h64:kv8:d64:s4096:w128:sink",
    "prefill:f32:b1:h32:kv8:d128:s4096:c1024", "decode:f32:b1:h32:kv8:d128:l8192",
    "decode:bf16:b1:h32:kv8:d128:l8192",       "decode:f16:b1:h32:kv8:d128:l8192",
    "decode:bf16:b16:h32:kv8:d128:l2048",      "decode:f32:b1:h8:kv1:d128:l131072",
};

}  // namespace

BenchCase attention_case(const std::string& text) {
  const AttentionShape shape = AttentionShape::parse(text);
  return {.shape = text,
          .operations = shape.operations(),
          .bytes = shape.bytes(),
          .prepare = [shape](Workspace& workspace) -> std::function<void()> {
            const auto bench = std::make_shared<AttentionBench>(shape);
            return [bench, &workspace] { bench->run(workspace); };
          }};
}

std::vector<BenchCase> bench_suite(const std::string& suite, const std::string& model, DType cache_dtype) {
  std::vector<BenchCase> cases;
  if (suite == "attention") {
    for (const char* shape : kAttentionCases) cases.push_back(attention_case(shape));
  } else if (suite == "layer") {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      cases.push_back(layer_case(dtype, 0, 512));
      cases.push_back(layer_case(dtype, 0, 2048));
      cases.push_back(layer_case(dtype, 4095, 1));
    }
  } else if (suite == "projection") {
    for (const WeightType type :
         {WeightType::f32, WeightType::bf16, WeightType::f16, WeightType::q8_0, WeightType::q4_1})
      for (const int64_t tokens : {1, 2, 4, 8, 16, 32, 64, 512}) cases.push_back(projection_case(type, tokens));
  } else {
    const Threads threads;
    const auto decoder = std::make_shared<const Model>(model.empty() ? random_decoder(threads)
                                                                     : Model::load(Checkpoint::open(model), threads));
    for (const auto& [history, tokens] : {std::pair<int64_t, int64_t>{0, 512}, {0, 4096}, {0, 1}, {4096, 1}, {8000, 1}})
      cases.push_back(decoder_case(decoder, history, tokens, cache_dtype));
  }
  return cases;
}

}  // namespace regard::cli
