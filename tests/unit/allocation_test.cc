// Untrusted sizes must not become allocations, and calls in steady state need none: this executable counts the bytes
// that operator new, and Buffers by aligned_alloc or mmap, are asked for.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/parsed_file.h"
#include "layers/mlp.h"
#include "regard/attend.h"
#include "regard/attention.h"
#include "regard/engine.h"
#include "regard/error.h"
#include "regard/tokenizer.h"
#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/numbers.h"
#include "support/stored_weight.h"
#include "support/temp_folder.h"
#include "support/test_layer.h"
#include "support/test_model.h"
#include "support/tiny_llama.h"

namespace {

std::atomic<size_t> asked_for = 0;            // by all threads
std::atomic<size_t> refused_from = SIZE_MAX;  // Buffers of so many bytes find no memory

// Something is asked for even where that is no bytes.
void count(size_t bytes) { asked_for += std::max<size_t>(bytes, 1); }

void* allocated(size_t bytes) {
  count(bytes);
  return std::malloc(bytes);
}
void* allocated(size_t bytes, std::align_val_t alignment) {
  count(bytes);
  void* memory = nullptr;
  return posix_memalign(&memory, static_cast<size_t>(alignment), bytes) == 0 ? memory : nullptr;
}
void* or_throw(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// clang-format off
void* operator new(size_t bytes) { return or_throw(allocated(bytes)); }
void* operator new[](size_t bytes) { return or_throw(allocated(bytes)); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return allocated(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return allocated(bytes); }
void* operator new(size_t bytes, std::align_val_t alignment) { return or_throw(allocated(bytes, alignment)); }
void* operator new[](size_t bytes, std::align_val_t alignment) { return or_throw(allocated(bytes, alignment)); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept { return allocated(bytes, alignment); }
void* operator new[](size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept { return allocated(bytes, alignment); }
// clang-format on
// Under a sanitizer GCC takes the news above for its own, which free would not suit.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
#pragma GCC diagnostic pop

// The linker's --wrap sends the library's calls here (tests/CMakeLists.txt).
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier): the linker chooses the names
void* __real_aligned_alloc(size_t alignment, size_t bytes);
void* __real_mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset);
void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  count(bytes);
  return bytes < refused_from ? __real_aligned_alloc(alignment, bytes) : nullptr;
}
void* __wrap_mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) {
  count(bytes);
  return bytes < refused_from ? __real_mmap(address, bytes, protection, flags, file, offset) : MAP_FAILED;
}
// NOLINTEND(bugprone-reserved-identifier)
}

namespace regard {
namespace {

// All that is allocated during `call`, freed or not; it may throw Error.
template <class Call>
size_t allocated_by(Call&& call) {
  const size_t before = asked_for;
  try {
    (void)call();
  } catch (const Error&) {
    // Refused: what it took until then counts.
  }
  return asked_for - before;
}

constexpr size_t kMegabyte = 1 << 20;
constexpr size_t kSmallFile = 2048;

TEST(Allocation, TheCounterSeesAVector) {
  EXPECT_GE(allocated_by([] { return std::vector<char>(12345); }), 12345U);
}

TEST(Allocation, TheCounterSeesAlignedObjectsAndOtherThreads) {
  struct alignas(128) Aligned {
    char bytes[12800];
  };
  EXPECT_GE(allocated_by([] { return std::make_unique<Aligned>(); }), 12800U);
  EXPECT_GE(allocated_by([] { return std::vector<Aligned>(1); }), 12800U);
  EXPECT_GE(allocated_by([] { std::thread([] { (void)std::vector<char>(12345); }).join(); }), 12345U);
}

// Small ones come from aligned_alloc, large ones from mmap.
TEST(Allocation, TheCounterSeesBuffers) {
  EXPECT_GE(allocated_by([] { (void)Buffer(12345); }), 12345U);
  EXPECT_GE(allocated_by([] { (void)Buffer(12345678); }), 12345678U);
  EXPECT_EQ(allocated_by([] { (void)Buffer(); }), 0U);
}

TEST(Allocation, ASmallGgufTakesLessThanAMegabyte) {
  size_t tried = 0;
  for (const auto& broken : test::broken_ggufs()) {
    if (broken.bytes.size() > kSmallFile) continue;
    EXPECT_LT(allocated_by([&] { return parse_gguf(test::as_bytes(broken.bytes), "file"); }), kMegabyte) << broken.name;
    ++tried;
  }
  EXPECT_GT(tried, 50U);
}

TEST(Allocation, AnyEdgeNumberInASmallGgufTakesLessThanAMegabyte) {
  const std::string file = test::small_gguf().build();
  for (size_t at = 4; at + 8 <= test::small_gguf().header().size(); ++at) {
    for (const uint64_t number : test::edge_numbers()) {
      std::string changed = file;
      changed.replace(at, 8, test::bytes_of(number));
      ASSERT_LT(allocated_by([&] { return parse_gguf(test::as_bytes(changed), "file"); }), kMegabyte)
          << number << " at " << at;
    }
  }
}

TEST(Allocation, ASmallSafetensorsTakesLessThanAMegabyte) {
  size_t tried = 0;
  for (const auto& broken : test::broken_safetensors()) {
    if (broken.bytes.size() > kSmallFile) continue;
    EXPECT_LT(allocated_by([&] { return parse_safetensors(test::as_bytes(broken.bytes), "file"); }), kMegabyte)
        << broken.name;
    ++tried;
  }
  EXPECT_GT(tried, 30U);
}

TEST(Allocation, ASmallTokenizerWithAHugeIdTakesLessThanAMegabyte) {
  for (const char* id : {"9999999", "2147483647", "4294967296", "9223372036854775807"}) {
    const std::string json = R"({"model":{"type":"BPE","vocab":{"a":)" + std::string(id) + R"(},"merges":[]},)" +
                             R"("pre_tokenizer":{"type":"ByteLevel"}})";
    EXPECT_LT(allocated_by([&] { return Tokenizer::from_json(json); }), kMegabyte) << id;
  }
}

// The numbers of heads of a model are only believed when the tensors have their size.
TEST(Allocation, HugeHeadCountsInASmallModelTakeFewMegabytes) {
  for (const auto& [heads, head_dim] : {std::pair{1U << 24, 1U << 24}, {1U << 24, 2U}, {4U, 1U << 24}}) {
    test::GgufBuilder gguf = test::TinyLlama{.layers = 1}.gguf();
    gguf.replace_raw("llama.attention.head_count", test::gguf::u32, test::bytes_of(heads));
    gguf.add_u32("llama.attention.key_length", head_dim);
    gguf.replace_raw("llama.rope.dimension_count", test::gguf::u32, test::bytes_of(2U));
    const test::TempFolder folder;
    const auto checkpoint = Checkpoint::open(folder.write("model.gguf", gguf.build()));
    const auto load = [&] { return Attention::load(checkpoint, 0, AttentionConfig::from(checkpoint, 0), Threads(1)); };
    EXPECT_LT(allocated_by(load), kMegabyte) << heads << " heads of " << head_dim;
  }
}

// What calls allocate after the first few, when scratch memory has its size.
template <class Call>
size_t allocated_in_steady_state(Call&& call) {
  for (int warm_up = 0; warm_up < 3; ++warm_up) call();
  return allocated_by([&] {
    for (int repeat = 0; repeat < 50; ++repeat) call();
  });
}

// Wide enough that two threads share every step.
AttentionConfig steady_layer() {
  AttentionConfig config{.hidden_size = 512, .num_attention_heads = 8, .num_key_value_heads = 2, .head_dim = 64};
  config.rotary_emb = RotaryConfig{};
  config.rms_norm_eps = 1e-6;
  config.learned_sinks_size = 1;
  return config;
}

const Tensor& steady_gain() {
  static const Tensor gain = test::Numbers(163).tensor({512});
  return gain;
}

// A token at position 300, and a prompt.
constexpr Span kSteadySpans[] = {{.slot = 0, .first_position = 300, .count = 1},
                                 {.slot = 0, .first_position = 0, .count = 40}};

KvCache steady_cache(DType dtype) {
  KvCache cache = KvCache::contiguous({.slots = 1, .capacity = 400, .dtype = dtype}, steady_layer());
  test::Numbers numbers(161);
  cache.append({.slot = 0, .count = 300}, numbers.tensor({300, 2, 64}), numbers.tensor({300, 2, 64}));
  return cache;
}

TEST(Allocation, ALayerAllocatesNothingInSteadyState) {
  const Attention attention = test::random_layer(steady_layer(), 162).load();
  for (const DType cache_dtype : {DType::f32, DType::bf16, DType::i8, DType::i4})
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const int threads : {1, 2})
        for (const bool pairs : {false, true})
          for (const Span& span : kSteadySpans) {
            SCOPED_TRACE(::testing::Message() << name_of(cache_dtype) << " cache, " << name_of(dtype) << ", " << threads
                                              << " threads, " << span.count << " tokens, pairs " << pairs);
            KvCache cache = steady_cache(cache_dtype);
            Workspace workspace(WorkspaceOptions{.threads = threads, .bf16_products = pairs});
            const Tensor hidden = test::Numbers(164).tensor({span.count, 512}, dtype);
            const Tensor output(dtype, {span.count, 512});
            AttentionInput input;
            input.hidden_states = hidden;
            input.rmsnorm = steady_gain();
            input.spans = std::span(&span, 1);
            input.output = output;
            input.cache = &cache;
            input.workspace = &workspace;
            EXPECT_EQ(allocated_in_steady_state([&] { (void)attention.forward(input); }), 0U);
          }
}

// Experts with a shared MLP and biases, for a token and for a prompt.
TEST(Allocation, AnMlpOfExpertsAllocatesNothingInSteadyState) {
  const auto square = test::random_weight(WeightType::bf16, 128, 128, 171);
  const std::vector<float> bias(128, 0.5F);
  const DenseWeights dense{.gate = square.view(),
                           .up = square.view(),
                           .down = square.view(),
                           .gate_bias = bias,
                           .up_bias = bias,
                           .down_bias = bias,
                           .gate_rows = {},
                           .up_rows = {}};
  const DenseMlp one{.width = 128, .has_bias = true};
  const ExpertsMlp spec{.experts = 128, .experts_per_token = 4, .expert = one, .router = {}, .shared = one};
  ExpertsWeights weights;
  weights.experts.assign(128, dense);
  weights.shared = dense;
  weights.router = square.view();
  const Mlp mlp = Mlp::load(spec, weights, 128, Threads(1), Ranks());
  for (const int threads : {1, 2})
    for (const int64_t tokens : {1, 40, 600}) {
      SCOPED_TRACE(::testing::Message() << threads << " threads, " << tokens << " tokens");
      Workspace workspace(threads);
      const Tensor x = test::Numbers(172).tensor({tokens, 128});
      const Tensor out(DType::f32, {tokens, 128});
      const RowSplit split{.rows = out, .rank = 0, .tokens = {}, .ranges = {}};
      EXPECT_EQ(allocated_in_steady_state([&] { mlp.run(x, split, out, workspace); }), 0U);
    }
}

// Token after token, through many pages: rings give back as many as they take.
TEST(Allocation, DecodingWithPagesAllocatesNothing) {
  AttentionConfig windowed = steady_layer();
  windowed.sliding_window = 50;
  const Attention attention = test::random_layer(windowed, 167).load();
  const Tensor hidden = test::Numbers(168).tensor({1, 512});
  const Tensor output(DType::f32, {1, 512});
  for (const KvStorage storage : {KvStorage::ring, KvStorage::paged})
    for (const DType dtype : {DType::bf16, DType::i8}) {
      SCOPED_TRACE(::testing::Message() << static_cast<int>(storage) << ' ' << name_of(dtype));
      KvCache cache(storage, {.slots = 1, .capacity = 400, .dtype = dtype}, windowed);
      Workspace workspace(1);
      AttentionInput input;
      input.hidden_states = hidden;
      input.rmsnorm = steady_gain();
      input.output = output;
      input.cache = &cache;
      input.workspace = &workspace;
      const auto decode = [&](int64_t tokens) {
        for (int64_t i = 0; i < tokens; ++i) {
          const Span span{.slot = 0, .first_position = cache.length(0), .count = 1};
          input.spans = std::span(&span, 1);
          (void)attention.forward(input);
        }
      };
      decode(60);
      EXPECT_EQ(allocated_by([&] { decode(300); }), 0U);
    }
}

// A slot that keeps all tokens remembers more pages as it grows, in doubling steps, and keeps that memory.
TEST(Allocation, AppendingToAPagedCacheAllocatesOnlyForALongerTable) {
  KvCache cache = KvCache::paged({.slots = 1, .capacity = 400, .dtype = DType::bf16}, steady_layer());
  const Tensor rows = test::Numbers(169).tensor({1, 2, 64});
  const auto append_to = [&](int64_t length) {
    while (cache.length(0) < length)
      cache.append({.slot = 0, .first_position = cache.length(0), .count = 1}, rows, rows);
  };
  append_to(1);
  EXPECT_EQ(allocated_by([&] { append_to(32); }), 0U);
  EXPECT_LE(allocated_by([&] { append_to(400); }), 4U * (2 + 4 + 8 + 16));
  cache.truncate(0, 0);
  EXPECT_EQ(allocated_by([&] { append_to(400); }), 0U);
}

TEST(Allocation, AttendAllocatesNothingInSteadyState) {
  const auto sinks = test::Numbers(165).floats(8);
  for (const DType cache_dtype : {DType::f32, DType::bf16, DType::i8, DType::i4})
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const int threads : {1, 2})
        for (Span span : kSteadySpans) {
          SCOPED_TRACE(::testing::Message() << name_of(cache_dtype) << " cache, " << name_of(dtype) << ", " << threads
                                            << " threads, " << span.count << " tokens");
          const KvCache cache = steady_cache(cache_dtype);
          span.first_position = cache.length(0) - span.count;
          Workspace workspace(threads);
          const Tensor queries = test::Numbers(166).tensor({span.count, 8, 64}, dtype);
          const Tensor output(dtype, {span.count, 8, 64});
          const Tensor lse(DType::f32, {span.count, 8});
          EXPECT_EQ(allocated_in_steady_state([&] {
                      attend({.queries = queries,
                              .spans = std::span(&span, 1),
                              .cache = &cache,
                              .sinks = sinks,
                              .output = output,
                              .lse = lse,
                              .workspace = &workspace});
                    }),
                    0U);
        }
}

TEST(Allocation, ACallOfTheModelThatFindsNoMemoryIsTheErrorOfItsTextsAlone) {
  const test::TestModel model(test::TinyLlama{.context = 1024});
  Workspace workspace(1);
  Engine engine(model.decoder(), {.tokenizer = &model.tokenizer(), .max_sequences = 2}, workspace);
  std::vector<GeneratedText> texts(2);
  engine.submit({.prompt = std::vector<int32_t>(500, 7)}, [&](GeneratedText text) { texts[0] = std::move(text); });
  refused_from = 32 << 10;  // 500 tokens need more than that in a layer
  engine.step();
  refused_from = SIZE_MAX;
  EXPECT_EQ(texts[0].finish, FinishReason::error);
  EXPECT_EQ(texts[0].error, "std::bad_alloc");
  const GenerationRequest request{.prompt = {5, 6, 7}, .max_tokens = 5};
  engine.submit(request, [&](GeneratedText text) { texts[1] = std::move(text); });
  engine.run();
  EXPECT_EQ(texts[1].tokens, model.text_of(request).tokens);
}

}  // namespace
}  // namespace regard
