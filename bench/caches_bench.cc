// What caches cost beside attention: appending, forking, and the upkeep of many sequences. See README.md.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <vector>

#include "regard/attend.h"
#include "regard/attention_config.h"
#include "regard/block_table.h"
#include "regard/model_cache.h"

namespace regard {
namespace {

constexpr int64_t kLength = 8192;

AttentionConfig layer() {
  return {.hidden_size = 4096, .num_attention_heads = 32, .num_key_value_heads = 8, .head_dim = 128};
}

Tensor rows(int64_t tokens, int64_t heads) {
  Tensor numbers(DType::f32, {tokens, heads, 128});
  for (int64_t i = 0; i < tokens * heads * 128; ++i)
    numbers.view().as<float>()[i] = static_cast<float>((i * 37 + 11) % 128) / 64.0F - 1.0F;
  return numbers;
}

// Where the pages of a sequence lie: side by side, where a pool puts them while another sequence grows too, or
// anywhere.
enum class Place : uint8_t { contiguous, in_turns, scattered };

KvCache full_cache(Place place, DType dtype) {
  const KvCacheOptions options{.slots = 2, .capacity = kLength, .dtype = dtype};
  if (place == Place::contiguous) {
    KvCache cache = KvCache::contiguous(options, layer());
    const Tensor all = rows(kLength, 8);
    cache.append({.slot = 0, .first_position = 0, .count = kLength}, all, all);
    return cache;
  }
  KvCache cache = KvCache::paged(options, layer());
  if (place == Place::scattered) {
    std::vector<int32_t> pages(static_cast<size_t>(cache.block_tables().pages()));
    std::iota(pages.begin(), pages.end(), 0);
    std::ranges::shuffle(pages, std::mt19937(1));  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same ones every time
    cache.block_tables().reserve(0, std::span(pages).first(pages.size() / 2));
  }
  const Tensor part = rows(cache.block_tables().page_size(), 8);
  for (int64_t first = 0; first < kLength; first += part.shape()[0])
    for (int64_t slot = 0; slot < 2; ++slot)
      cache.append({.slot = slot, .first_position = first, .count = part.shape()[0]}, part, part);
  return cache;
}

// The last token of a long sequence, again and again.
void append(benchmark::State& state, Place place, DType dtype) {
  KvCache cache = full_cache(place, dtype);
  const Tensor token = rows(1, 8);
  for (auto _ : state) cache.append({.slot = 0, .first_position = kLength - 1, .count = 1}, token, token);
}

// The decode step that the append above is part of; one thread, as the append. Caches take turns, as those of layers
// do: one alone might stay in the processor.
void attend_decode(benchmark::State& state, Place place, DType dtype) {
  std::vector<KvCache> caches;
  for (int i = 0; i < 3; ++i) caches.push_back(full_cache(place, dtype));
  size_t next = 0;
  const Tensor queries = rows(1, 32);
  const Tensor output(DType::f32, {1, 32, 128});
  const Span span{.slot = 0, .first_position = kLength - 1, .count = 1};
  Workspace workspace(1);
  for (auto _ : state) {
    attend(
        {.queries = queries, .spans = {&span, 1}, .cache = &caches[next], .output = output, .workspace = &workspace});
    next = (next + 1) % caches.size();
  }
}

void fork_and_free(benchmark::State& state) {
  KvCache cache = full_cache(Place::in_turns, DType::bf16);
  cache.truncate(1, 0);
  for (auto _ : state) {
    cache.fork(0, 1, kLength);
    cache.truncate(1, 0);
  }
}

// 1,000 sequences of mixed length in the caches of 30 layers, with a few numbers a token.
class ThousandSequences {
 public:
  ThousandSequences() {
    for (int64_t i = 0; i < kSequences; ++i) {
      std::vector<int32_t> tokens(static_cast<size_t>(1 + i % 700), static_cast<int32_t>(i));
      const int64_t slot = cache_.open(tokens).value().slot;
      append({.slot = slot, .first_position = 0, .count = std::ssize(tokens)});
      cache_.commit(slot, tokens);
      spans_.push_back({.slot = slot, .first_position = std::ssize(tokens), .count = 1});
      texts_.push_back(std::move(tokens));
    }
  }

  [[nodiscard]] bool has_room() { return cache_.make_room(spans_); }
  // What a scheduler does before and after it runs a step of a token each.
  void make_room_for_step() {
    growing_.clear();
    for (const Span& span : spans_)
      if (span.first_position % kPage == 0) growing_.push_back(span);
    benchmark::DoNotOptimize(cache_.make_room(growing_));
  }
  void commit_step() {
    for (size_t i = 0; i < spans_.size(); ++i)
      if (spans_[i].first_position % kPage == 0) cache_.commit(spans_[i].slot, texts_[i]);
  }
  void run_step() {
    for (size_t i = 0; i < spans_.size(); ++i) {
      append(spans_[i]);
      ++spans_[i].first_position;
      texts_[i].push_back(static_cast<int32_t>(i));
    }
  }

 private:
  static constexpr int64_t kSequences = 1000;
  static constexpr int64_t kPage = 32;

  static ModelCache make_cache() {
    const AttentionConfig small{.hidden_size = 16, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 16};
    std::vector<KvCache> layers;
    for (int i = 0; i < 30; ++i)
      layers.push_back(KvCache::paged({.slots = kSequences, .capacity = 4096, .dtype = DType::i8}, small));
    return {std::move(layers), true};
  }
  void append(const Span& span) {
    const Tensor numbers(DType::f32, {span.count, 1, 16});
    for (KvCache& each : cache_.layers()) each.append(span, numbers, numbers);
  }

  ModelCache cache_ = make_cache();
  std::vector<std::vector<int32_t>> texts_;
  std::vector<Span> spans_;
  std::vector<Span> growing_;
};

void make_room_for_1000(benchmark::State& state) {
  ThousandSequences sequences;
  for (auto _ : state) benchmark::DoNotOptimize(sequences.has_room());
}

// The upkeep of a step, without the step itself.
void step_of_1000(benchmark::State& state) {
  using Clock = std::chrono::steady_clock;
  ThousandSequences sequences;
  for (auto _ : state) {
    const auto start = Clock::now();
    sequences.make_room_for_step();
    const auto middle = Clock::now();
    sequences.run_step();
    const auto end = Clock::now();
    sequences.commit_step();
    state.SetIterationTime(std::chrono::duration<double>((middle - start) + (Clock::now() - end)).count());
  }
}

// A short text comes, where 1,000 running ones hold nearly all pages and texts that ended the rest.
void evict_beside_1000(benchmark::State& state) {
  constexpr int64_t kRunning = 1000;
  constexpr int64_t kLong = 1024;
  constexpr int64_t kShort = 64;
  const AttentionConfig small{.hidden_size = 16, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 16};
  std::vector<KvCache> layers;
  layers.push_back(KvCache::paged({.slots = kRunning + 1,
                                   .capacity = kLong,
                                   .dtype = DType::i8,
                                   .page_size = 16,
                                   .pages = kRunning * kLong / 16 + 256},
                                  small));
  ModelCache cache(std::move(layers), true);
  int32_t next_token = 0;
  const auto new_text = [&](int64_t length) {
    std::vector<int32_t> tokens(static_cast<size_t>(length));
    std::iota(tokens.begin(), tokens.end(), next_token);
    next_token += static_cast<int32_t>(length);
    return tokens;
  };
  const auto run = [&](int64_t slot, std::span<const int32_t> tokens) {
    const Tensor numbers(DType::f32, {std::ssize(tokens), 1, 16});
    cache.layers()[0].append({.slot = slot, .first_position = 0, .count = std::ssize(tokens)}, numbers, numbers);
    cache.commit(slot, tokens);
  };
  for (int64_t i = 0; i < kRunning; ++i) {
    const auto tokens = new_text(kLong);
    run(cache.open(tokens).value().slot, tokens);
  }
  for (auto _ : state) {
    const auto tokens = new_text(kShort);
    const Span span{.slot = cache.open(tokens).value().slot, .first_position = 0, .count = kShort};
    benchmark::DoNotOptimize(cache.make_room({&span, 1}));
    run(span.slot, tokens);
    cache.close(span.slot);
  }
}

BENCHMARK_CAPTURE(append, contiguous_bf16, Place::contiguous, DType::bf16);
BENCHMARK_CAPTURE(append, paged_bf16, Place::in_turns, DType::bf16);
BENCHMARK_CAPTURE(append, paged_i8, Place::in_turns, DType::i8);
BENCHMARK_CAPTURE(attend_decode, contiguous_f32, Place::contiguous, DType::f32);
BENCHMARK_CAPTURE(attend_decode, paged_f32, Place::in_turns, DType::f32);
BENCHMARK_CAPTURE(attend_decode, scattered_f32, Place::scattered, DType::f32);
BENCHMARK_CAPTURE(attend_decode, contiguous_bf16, Place::contiguous, DType::bf16);
BENCHMARK_CAPTURE(attend_decode, paged_bf16, Place::in_turns, DType::bf16);
BENCHMARK_CAPTURE(attend_decode, scattered_bf16, Place::scattered, DType::bf16);
BENCHMARK_CAPTURE(attend_decode, contiguous_i8, Place::contiguous, DType::i8);
BENCHMARK_CAPTURE(attend_decode, paged_i8, Place::in_turns, DType::i8);
BENCHMARK_CAPTURE(attend_decode, scattered_i8, Place::scattered, DType::i8);
BENCHMARK(fork_and_free);
BENCHMARK(make_room_for_1000)->Unit(benchmark::kMillisecond);
BENCHMARK(evict_beside_1000)->Iterations(3000);
BENCHMARK(step_of_1000)->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(1000);

}  // namespace
}  // namespace regard
