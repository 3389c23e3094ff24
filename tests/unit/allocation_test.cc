// Untrusted sizes must not become allocations: this executable counts what operator new is asked for.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "checkpoint/parsed_file.h"
#include "regard/attention.h"
#include "regard/error.h"
#include "regard/tokenizer.h"
#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace {

thread_local size_t asked_for = 0;

void* counted(size_t bytes) {
  asked_for += bytes;
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes); }
void* operator new[](size_t bytes) { return counted(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  asked_for += bytes;
  return std::malloc(bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace regard {
namespace {

// All that `call` allocates on this thread, freed or not; it may throw Error.
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

}  // namespace
}  // namespace regard
