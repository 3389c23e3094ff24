#include <fmt/format.h>

#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/safetensors_builder.h"

namespace regard::test {
namespace {

// A header of one tensor "a" with these parts.
std::string one_tensor(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return fmt::format(R"({{"a":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape, offsets);
}

std::string two_tensors(std::string_view first, std::string_view second) {
  return fmt::format(
      R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
      first, second);
}

void add_headers(std::vector<BrokenFile>& files) {
  const auto add = [&](std::string name, std::string_view header, std::string complaint) {
    files.push_back({std::move(name), safetensors_bytes(header, "12345678"), std::move(complaint)});
  };
  files.push_back({"one byte", "x", "expected a header"});
  files.push_back({"seven bytes", "1234567", "expected a header"});
  for (const uint64_t length : {uint64_t{9}, uint64_t{100'000'001}, uint64_t{1} << 32, uint64_t{1} << 63, ~uint64_t{0}})
    files.push_back({"header of " + std::to_string(length), bytes_of(length) + "{\"a\":1}", std::to_string(length)});
  files.push_back({"header longer than is allowed", safetensors_bytes("{" + std::string(100'000'000, ' ') + "}", ""),
                   "at most 100000000"});
  add("empty header", "", "no valid JSON");
  add("no JSON", "hello", "no valid JSON");
  add("half a JSON", "{\"a\":", "no valid JSON");
  add("two JSONs", "{}{}", "no valid JSON");
  add("invalid UTF-8", "{\"\xFF\":1}", "no valid JSON");
  add("a number past every double", R"({"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,8]}})", "no valid JSON");
  add("a list", "[]", "no JSON object");
  add("null", "null", "no JSON object");
  add("deep lists", R"({"a":)" + std::string(100'000, '['), "nested more than 4 deep");
  add("no tensors, but data", "{}", "8 unused bytes");
  add("metadata of a number", R"({"__metadata__":7})", "__metadata__ is no object");
  add("metadata that holds a number", R"({"__metadata__":{"a":7}})", "is no string");
}

void add_tensors(std::vector<BrokenFile>& files) {
  const auto add = [&](std::string name, std::string_view header, std::string complaint) {
    files.push_back({std::move(name), safetensors_bytes(header, "12345678"), std::move(complaint)});
  };
  add("tensor of a number", R"({"a":1})", "is no object");
  add("no dtype", R"({"a":{"shape":[8],"data_offsets":[0,8]}})", "no \"dtype\"");
  add("dtype of a number", one_tensor("8", "[8]", "[0,8]"), "no \"dtype\"");
  add("unknown dtype", one_tensor("\"U7\"", "[8]", "[0,8]"), "U7");
  add("no shape", R"({"a":{"dtype":"U8","data_offsets":[0,8]}})", "no list \"shape\"");
  add("shape of a number", one_tensor("\"U8\"", "8", "[0,8]"), "no list \"shape\"");
  for (const char* size : {"-1", "8.0", "\"8\"", "null", "true", "[8]", "18446744073709551615", "9223372036854775808"})
    add(std::string("size ") + size, one_tensor("\"U8\"", fmt::format("[{}]", size), "[0,8]"), "expected integers");
  add("nine axes", one_tensor("\"U8\"", "[1,1,1,1,1,1,1,1,8]", "[0,8]"), "9 axes");
  add("more elements than 64 bits count", one_tensor("\"U8\"", "[4294967296,4294967296]", "[0,8]"), "more elements");
  add("elements that a zero hides", one_tensor("\"U8\"", "[0,4294967296,4294967296]", "[0,8]"), "more elements");
  add("more bytes than 64 bits count", one_tensor("\"F64\"", "[4611686018427387904]", "[0,8]"), "another number");
  add("shape and bytes that differ", one_tensor("\"U8\"", "[7]", "[0,8]"), "another number");
  add("no offsets", R"({"a":{"dtype":"U8","shape":[8]}})", "no list \"data_offsets\"");
  for (const char* offsets : {"[]", "[0]", "[0,8,8]", "[8,0]", "[0,9]", "[9,9]", "[0,4611686018427387904]"})
    add(std::string("offsets ") + offsets, one_tensor("\"U8\"", "[8]", offsets), "data_offsets outside");
  add("negative offset", one_tensor("\"U8\"", "[8]", "[-8,0]"), "expected integers");
  add("overlap", two_tensors("[0,4]", "[2,6]"), "overlaps");
  add("the same bytes twice", two_tensors("[0,4]", "[0,4]"), "overlaps");
  add("hole in front", one_tensor("\"U8\"", "[4]", "[4,8]"), "unused bytes before");
  add("hole at the end", one_tensor("\"U8\"", "[4]", "[0,4]"), "unused bytes after");
  add("hole between", two_tensors("[0,4]", "[5,9]"), "data_offsets outside");
  add("name twice",
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
      "comes twice");
  add("part twice", R"({"a":{"dtype":"U8","dtype":"I8","shape":[8],"data_offsets":[0,8]}})", "comes twice");
}

}  // namespace

std::vector<BrokenFile> broken_safetensors() {
  std::vector<BrokenFile> files;
  add_headers(files);
  add_tensors(files);
  return files;
}

}  // namespace regard::test
