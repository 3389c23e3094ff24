#include <functional>
#include <limits>

#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/gguf_builder.h"

namespace regard::test {
namespace {

using Change = std::function<void(GgufBuilder&)>;

std::string changed(const Change& change) {
  GgufBuilder file = small_gguf();
  change(file);
  return file.build();
}

// A key with a value that the test spells byte by byte.
Change with_value(uint32_t type, const std::string& bytes) {
  return [=](GgufBuilder& file) { file.add_raw("test.broken", type, bytes); };
}

constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
constexpr uint64_t k2To63 = uint64_t{1} << 63;

void add_headers(std::vector<BrokenFile>& files) {
  const std::string good = small_gguf().build();
  files.push_back({"only the magic", good.substr(0, 4), "inside the version"});
  files.push_back({"no counts", good.substr(0, 8), "inside the tensor count"});
  files.push_back({"another magic", changed([](auto& file) { file.magic = "GGML"; }), "header"});
  for (const uint32_t version : {0U, 1U, 4U, 0xFFFFFFFFU})
    files.push_back({"version " + std::to_string(version), changed([=](auto& file) { file.version = version; }),
                     "expected 2 or 3"});
  files.push_back({"big-endian", changed([](auto& file) { file.version = 0x03000000; }), "big-endian"});
  for (const uint64_t count : {uint64_t{1000}, uint64_t{1} << 32, k2To63, kMost}) {
    const std::string text = std::to_string(count);
    files.push_back({"tensor count " + text, changed([=](auto& file) { file.tensor_count = count; }), text});
    files.push_back({"value count " + text, changed([=](auto& file) { file.value_count = count; }), text});
  }
  files.push_back({"one tensor fewer than said", changed([](auto& file) { file.tensor_count = 4; }), "checkpoint: "});
  files.push_back({"one value fewer than said", changed([](auto& file) { file.value_count = 17; }), "checkpoint: "});
}

void add_values(std::vector<BrokenFile>& files) {
  const auto add = [&](std::string name, const Change& change, std::string complaint) {
    files.push_back({std::move(name), changed(change), std::move(complaint)});
  };
  add("unknown value type", with_value(13, bytes_of(uint64_t{0})), "type 13");
  add("huge value type", with_value(0xFFFFFFFFU, ""), "type 4294967295");
  add("bool of 2", with_value(gguf::boolean, "\2"), "expected 0 or 1");
  add("u64 past int64", with_value(gguf::u64, bytes_of(k2To63)), "too large");
  add(
      "key twice", [](auto& file) { file.add_u32("test.u32", 1); }, "comes twice");
  for (const uint64_t length : {uint64_t{100'000}, uint64_t{1} << 32, k2To63, kMost - 7, kMost}) {
    const std::string text = std::to_string(length);
    add("string of " + text, with_value(gguf::string, bytes_of(length)), text);
    for (const uint32_t type : {gguf::u8, gguf::i16, gguf::u32, gguf::f64, gguf::boolean, gguf::string})
      add("array of " + text + " of type " + std::to_string(type),
          with_value(gguf::array, array_bytes(type, length, "")), text);
  }
  add("array of arrays", with_value(gguf::array, array_bytes(gguf::array, 1, array_bytes(gguf::u8, 1, "a"))),
      "array of type 9");
  add("array of unknown type", with_value(gguf::array, array_bytes(99, 1, "a")), "array of type 99");
  add("array with a string past the end",
      with_value(gguf::array, array_bytes(gguf::string, 2, bytes_of("a") + bytes_of(kMost))), std::to_string(kMost));
  add(
      "alignment 0", [](auto& file) { file.add_u32("general.alignment", 0); }, "general.alignment is 0");
  for (const uint32_t wrong : {3U, 24U, 48U, 0x80000000U, 0xFFFFFFFFU})
    add(
        "alignment " + std::to_string(wrong), [=](auto& file) { file.add_u32("general.alignment", wrong); },
        "expected a power of two");
  add(
      "negative alignment", [](auto& file) { file.add_raw("general.alignment", gguf::i32, bytes_of(int32_t{-32})); },
      "is -32");
  add(
      "alignment of text", [](auto& file) { file.add_text("general.alignment", "32"); }, "is no integer");
  add(
      "alignment of a float", [](auto& file) { file.add_f32("general.alignment", 32.0F); }, "is no integer");
  add(
      "alignment that the tensors do not keep", [](auto& file) { file.add_u32("general.alignment", 64); },
      "checkpoint: ");
}

void add_tensors(std::vector<BrokenFile>& files) {
  const auto add = [&](std::string name, const std::function<void(GgufTensor&)>& change, std::string complaint) {
    files.push_back(
        {std::move(name), changed([&](GgufBuilder& file) { change(file.tensor("matrix")); }), std::move(complaint)});
  };
  add(
      "rank 5",
      [](auto& tensor) {
        tensor.sizes = {1, 1, 1, 4, 3};
      },
      "5 axes");
  add(
      "huge rank", [](auto& tensor) { tensor.rank = 0xFFFFFFFFU; }, "4294967295 axes");
  add(
      "unknown type", [](auto& tensor) { tensor.type = 1000; }, "unknown type 1000");
  add(
      "type that is not read", [](auto& tensor) { tensor.type = gguf::type_q2_k; }, "Q2_K");
  for (const uint64_t size : {uint64_t{0}, (uint64_t{1} << 48) + 1, k2To63, kMost})
    add(
        "size " + std::to_string(size),
        [=](auto& tensor) {
          tensor.sizes = {4, size};
        },
        std::to_string(size));
  add(
      "more elements than 64 bits count", [](auto& tensor) { tensor.sizes.assign(4, uint64_t{1} << 48); },
      "more elements");
  add(
      "more bytes than 64 bits count",
      [](auto& tensor) {
        tensor.sizes = {uint64_t{1} << 31, uint64_t{1} << 31};
      },
      "ends past");
  add(
      "one row too many",
      [](auto& tensor) {
        tensor.sizes = {4, 100};
      },
      "ends past");
  add(
      "rows that are no whole blocks",
      [](auto& tensor) {
        tensor.sizes = {48};
        tensor.type = gguf::type_q8_0;
      },
      "expected a multiple of 32");
  add(
      "offset off the alignment", [](auto& tensor) { tensor.offset = 8; }, "expected a multiple of 32");
  for (const uint64_t offset : {uint64_t{1} << 20, uint64_t{1} << 32, k2To63, kMost - 31})
    add(
        "offset " + std::to_string(offset), [=](auto& tensor) { tensor.offset = offset; }, "ends past");
  add(
      "overlap", [](auto& tensor) { tensor.offset = 64; }, "overlaps");
  add(
      "name twice", [](auto& tensor) { tensor.name = "blocks"; }, "comes twice");
}

}  // namespace

std::vector<uint64_t> edge_numbers() {
  return {0,          1,      0x7F,       0x80,       0xFF,       0x7FFF,
          0x8000,     0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, uint64_t{1} << 32,
          k2To63 - 1, k2To63, kMost - 1,  kMost};
}

std::vector<BrokenFile> broken_ggufs() {
  std::vector<BrokenFile> files;
  add_headers(files);
  add_values(files);
  add_tensors(files);
  return files;
}

}  // namespace regard::test
