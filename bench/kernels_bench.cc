// What single kernels take when their data is in the L2 cache, and what calls cost beside their kernels. See README.md.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "kernels/bf16_products.h"
#include "kernels/matmul.h"
#include "kernels/rows.h"
#include "regard/attend.h"
#include "regard/attention.h"

namespace regard {
namespace {

// Numbers in -1..1 in no order; none so small that arithmetic slows down.
std::vector<float> numbers(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i * 37 + 11) % 128) / 64.0F - 0.9921875F;
  return values;
}
Tensor tensor(DType dtype, const Shape& shape) {
  Tensor wide(DType::f32, shape);
  std::ranges::copy(numbers(shape.elements()), wide.elements<float>().begin());
  return dtype == DType::f32 ? wide : convert(wide, dtype);
}

// `count` of something an iteration.
benchmark::Counter rate(double count) {
  return {count, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000};
}

// ---- matmul: rows of f32 times panels of each type ----

struct Panel {
  const char* name;
  kernels::PanelType type;
  int32_t group;
  bool pairs = false;
};
using kernels::PanelType;
constexpr Panel kPanels[] = {{"f32", PanelType::f32, 0},
                             {"bf16", PanelType::bf16, 0},
                             {"bf16_pairs", PanelType::bf16, 0, true},
                             {"f16", PanelType::f16, 0},
                             {"f8_e4m3", PanelType::f8_e4m3, 0},
                             {"f8_e5m2", PanelType::f8_e5m2, 0},
                             {"i8_unscaled", PanelType::i8_unscaled, 0},
                             {"i4_unscaled", PanelType::i4_unscaled, 0},
                             {"i8", PanelType::i8, 32},
                             {"i8_wide", PanelType::i8_wide, 16},
                             {"u4", PanelType::u4, 32},
                             {"u4_wide", PanelType::u4_wide, 32}};

void matmul(benchmark::State& state, const Panel& panel) {
  // 256 KB of f32.
  constexpr int64_t kColumns = 128;
  constexpr int64_t kDepth = 512;
  if (panel.pairs && !kernels::has_bf16_products()) return state.SkipWithError("this machine has no bf16 products");
  const int64_t rows = state.range(0);
  kernels::PanelView weights{.type = panel.type, .group = panel.group};
  weights.tile_bytes = weights.bytes_of(kDepth);
  const Buffer memory(static_cast<size_t>(weights.tile_bytes * kernels::tiles(kColumns)));  // zeros
  weights.data = memory.data();
  const Tensor x = tensor(DType::f32, {rows, kDepth});
  const Tensor out(DType::f32, {rows, kColumns});
  const kernels::InputRows input{.data = x.view().data(), .rows = rows, .depth = kDepth, .stride = kDepth};
  const kernels::Product product{
      .weights = weights, .columns = kColumns, .out = out.elements<float>().data(), .out_stride = kColumns};
  const kernels::ProductGroup group{.first = 0, .count = rows, .products = std::span(&product, 1)};
  kernels::MatmulScratch scratch;
  const Threads one(1);
  for (auto _ : state) {
    kernels::matmul(input, std::span(&group, 1), scratch, one, {.bf16_products = panel.pairs});
    benchmark::ClobberMemory();
  }
  state.counters["FLOP/s"] = rate(2.0 * static_cast<double>(rows * kColumns * kDepth));
}

// ---- caches ----

constexpr DType kCacheTypes[] = {DType::f32, DType::bf16,    DType::f16,    DType::i8,
                                 DType::i4,  DType::f8_e4m3, DType::f8_e5m2};

AttentionConfig layer(int64_t heads, int64_t kv_heads, int64_t head_dim) {
  return {.hidden_size = 256, .num_attention_heads = heads, .num_key_value_heads = kv_heads, .head_dim = head_dim};
}

KvCache filled_cache(const AttentionConfig& config, DType dtype, int64_t tokens) {
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = tokens, .dtype = dtype}, config);
  const Shape shape{tokens, config.num_key_value_heads, config.head_dim};
  cache.append({.count = tokens}, tensor(DType::f32, shape), tensor(DType::f32, shape));
  return cache;
}

// The last tokens of a cache of 512, of 8 KV heads of 128.
void append(benchmark::State& state, DType dtype) {
  constexpr int64_t kLength = 512;
  const int64_t tokens = state.range(0);
  KvCache cache = filled_cache(layer(8, 8, 128), dtype, kLength);
  const Tensor rows = tensor(DType::f32, {tokens, 8, 128});
  for (auto _ : state) {
    cache.append({.first_position = kLength - tokens, .count = tokens}, rows, rows);
    benchmark::ClobberMemory();
  }
  state.counters["tokens/s"] = rate(static_cast<double>(tokens));
}

// ---- attention ----

// The last `tokens` of `length`, by one thread.
void run_attend(benchmark::State& state, const AttentionConfig& config, DType dtype, int64_t length, int64_t tokens) {
  const KvCache cache = filled_cache(config, dtype, length);
  const Tensor queries = tensor(DType::f32, {tokens, config.num_attention_heads, config.head_dim});
  const Tensor output(DType::f32, queries.shape());
  const Span span{.first_position = length - tokens, .count = tokens};
  Workspace workspace(1);
  for (auto _ : state) {
    attend(
        {.queries = queries, .spans = std::span(&span, 1), .cache = &cache, .output = output, .workspace = &workspace});
    benchmark::ClobberMemory();
  }
  const auto scores = static_cast<double>(config.num_attention_heads * tokens * (2 * length - tokens + 1)) / 2.0;
  state.counters["FLOP/s"] = rate(scores * static_cast<double>(4 * config.head_dim));
  state.counters["scores/s"] = rate(scores);
}

// One unit of work: a token's 4 query heads on one KV head of 128, whose keys and values take 256 KB as f32.
void decode(benchmark::State& state, DType dtype) { run_attend(state, layer(4, 1, 128), dtype, 256, 1); }
// Heads so narrow that the softmax takes most of the time.
void narrow_heads(benchmark::State& state, DType dtype) { run_attend(state, layer(4, 4, 16), dtype, 512, 512); }

// ---- rows ----

void rms_norm(benchmark::State& state) {
  const int64_t count = state.range(0);
  const auto x = numbers(count);
  std::vector<float> out(x.size());
  for (auto _ : state) {
    kernels::rms_norm(x.data(), x.data(), 1e-6, count, out.data());
    benchmark::ClobberMemory();
  }
  state.counters["numbers/s"] = rate(static_cast<double>(count));
}

void layer_norm(benchmark::State& state) {
  const int64_t count = state.range(0);
  const auto weight = numbers(count);
  auto row = numbers(count);
  for (auto _ : state) {
    kernels::normalize(NormKind::layer_norm, 1e-6, weight.data(), weight.data(), count, row.data());
    benchmark::ClobberMemory();
  }
  state.counters["numbers/s"] = rate(static_cast<double>(count));
}

void rotate(benchmark::State& state, RotaryStyle style) {
  constexpr int64_t kHeads = 8;
  constexpr int64_t kHalf = 64;
  // A quarter of a turn keeps numbers at their size.
  const std::vector<float> cos(kHalf, 0.0F);
  const std::vector<float> sin(kHalf, 1.0F);
  auto row = numbers(kHeads * 2 * kHalf);
  for (auto _ : state) {
    kernels::rotate(style, cos.data(), sin.data(), kHalf, kHeads, 2 * kHalf, row.data());
    benchmark::ClobberMemory();
  }
  state.counters["numbers/s"] = rate(static_cast<double>(row.size()));
}

// ---- what is left of a call when there is next to nothing to compute ----

void one_token(benchmark::State& state) {
  AttentionConfig config = layer(4, 2, 64);
  config.rotary_emb = RotaryConfig{};
  const auto weight = numbers(256 * 256);
  const auto matrix = [&](int64_t rows) {
    const auto bytes = std::as_bytes(std::span(weight).first(static_cast<size_t>(rows * 256)));
    return WeightView::make(WeightType::f32, rows, 256, bytes);
  };
  AttentionWeights weights;
  weights.qkv.q = matrix(256);
  weights.qkv.k = matrix(128);
  weights.qkv.v = matrix(128);
  weights.output = matrix(256);
  const Attention attention = Attention::load(weights, config, Threads(1));
  constexpr int64_t kLength = 64;
  KvCache cache = filled_cache(attention.config(), DType::f32, kLength);
  const Tensor hidden = tensor(DType::f32, {1, 256});
  const Tensor output(DType::f32, {1, 256});
  const Span span{.first_position = kLength - 1, .count = 1};
  Workspace workspace(static_cast<int>(state.range(0)));
  AttentionInput input;
  input.hidden_states = hidden;
  input.spans = std::span(&span, 1);
  input.output = output;
  input.cache = &cache;
  input.workspace = &workspace;
  for (auto _ : state) {
    attention.forward(input);
    benchmark::ClobberMemory();
  }
}

// One task for each thread, with nothing in it.
void fork_and_join(benchmark::State& state) {
  const Threads threads(static_cast<int>(state.range(0)));
  for (auto _ : state) threads.for_each(threads.count(), [](int64_t task, int) { benchmark::DoNotOptimize(task); });
}

const int kRegistered = [] {
  for (const Panel& panel : kPanels) {
    auto* bench = benchmark::RegisterBenchmark((std::string("matmul/") + panel.name).c_str(), matmul, panel);
    for (const int64_t rows : {1, 4, 8, 12, 16, 64, 240}) bench->Arg(rows);
    bench->ArgName("rows");
  }
  for (const DType dtype : kCacheTypes) {
    const std::string name(name_of(dtype));
    benchmark::RegisterBenchmark(("append/" + name).c_str(), append, dtype)->Arg(1)->Arg(512)->ArgName("tokens");
    benchmark::RegisterBenchmark(("decode/" + name).c_str(), decode, dtype);
  }
  for (const DType dtype : {DType::f32, DType::bf16})
    benchmark::RegisterBenchmark(("narrow_heads/" + std::string(name_of(dtype))).c_str(), narrow_heads, dtype);
  benchmark::RegisterBenchmark("rms_norm", rms_norm)->Arg(128)->Arg(4096);
  benchmark::RegisterBenchmark("layer_norm", layer_norm)->Arg(128)->Arg(4096);
  benchmark::RegisterBenchmark("rotate/half", rotate, RotaryStyle::half);
  benchmark::RegisterBenchmark("rotate/interleaved", rotate, RotaryStyle::interleaved);
  benchmark::RegisterBenchmark("one_token", one_token)->Arg(1)->Arg(2)->ArgName("threads")->UseRealTime();
  benchmark::RegisterBenchmark("fork_and_join", fork_and_join)->Arg(1)->Arg(2)->ArgName("threads")->UseRealTime();
  return 0;
}();

}  // namespace
}  // namespace regard
