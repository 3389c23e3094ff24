#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "checkpoint/parsed_file.h"
#include "regard/checkpoint.h"
#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/expect_error.h"
#include "support/gguf_builder.h"
#include "support/sanitized.h"
#include "support/temp_folder.h"

namespace regard {
namespace {

using test::as_bytes;
using test::bytes_of;
using test::GgufBuilder;
using test::small_gguf;

ParsedFile parse(std::string_view bytes) { return parse_gguf(as_bytes(bytes), "file.gguf"); }

// What holds for every file that is read: each tensor lies inside it and has the bytes of its shape.
void expect_sound(const ParsedFile& parsed, std::string_view file) {
  for (const StoredTensor& tensor : parsed.tensors) {
    const auto* begin = reinterpret_cast<const char*>(tensor.bytes.data());
    ASSERT_GE(begin, file.data());
    ASSERT_LE(tensor.bytes.size(), static_cast<size_t>(file.data() + file.size() - begin));
    const WeightBlock block = block_of(tensor.type);
    ASSERT_EQ(static_cast<int64_t>(tensor.bytes.size()), tensor.shape.elements() / block.values * block.bytes);
    (void)tensor.matrix();
  }
}

void expect_sound_or_refused(const std::string& file) {
  try {
    expect_sound(parse(file), file);
  } catch (const Error& error) {
    EXPECT_TRUE(std::string_view(error.what()).starts_with("checkpoint: file.gguf")) << error.what();
  }
}

template <class T>
const T& value(const ParsedFile& parsed, const std::string& key) {
  return std::get<T>(parsed.metadata.at(key));
}

TEST(Gguf, EveryKindOfValueIsReadFromVersions2And3) {
  for (const uint32_t version : {2U, 3U}) {
    GgufBuilder builder = small_gguf();
    builder.version = version;
    const std::string file = builder.build();
    const ParsedFile parsed = parse(file);
    EXPECT_EQ(parsed.metadata.size(), 16U);
    EXPECT_EQ(value<std::string>(parsed, "general.architecture"), "test");
    EXPECT_EQ(value<int64_t>(parsed, "test.u8"), 200);
    EXPECT_EQ(value<int64_t>(parsed, "test.i8"), -100);
    EXPECT_EQ(value<int64_t>(parsed, "test.u16"), 60000);
    EXPECT_EQ(value<int64_t>(parsed, "test.i16"), -30000);
    EXPECT_EQ(value<int64_t>(parsed, "test.u32"), 4'000'000'000);
    EXPECT_EQ(value<int64_t>(parsed, "test.i32"), -2'000'000'000);
    EXPECT_EQ(value<int64_t>(parsed, "test.u64"), int64_t{1} << 62);
    EXPECT_EQ(value<int64_t>(parsed, "test.i64"), -(int64_t{1} << 62));
    EXPECT_EQ(value<double>(parsed, "test.f32"), 0.25);
    EXPECT_EQ(value<double>(parsed, "test.f64"), -0.125);
    EXPECT_EQ(value<bool>(parsed, "test.bool"), true);
    EXPECT_EQ(value<std::vector<std::string>>(parsed, "test.texts"), (std::vector<std::string>{"a", "", "bc"}));
    EXPECT_EQ(value<std::vector<int64_t>>(parsed, "test.numbers"), (std::vector<int64_t>{-1, 7}));
    EXPECT_EQ(value<std::vector<double>>(parsed, "test.floats"), std::vector<double>{1.5});
    EXPECT_EQ(value<std::vector<bool>>(parsed, "test.bools"), (std::vector<bool>{true, false}));
  }
}

TEST(Gguf, ArraysOfMillionsOfNumbersTakeEightBytesEachAndAreReadWhole) {
  constexpr int64_t kValues = test::kSanitized ? 1'000'000 : 9'000'000;
  GgufBuilder file = small_gguf();
  file.add_raw("test.long", test::gguf::array,
               test::array_bytes(test::gguf::i8, kValues, std::string(kValues, '\xFE')));
  const std::string bytes = file.build();
  const ParsedFile parsed = parse_gguf(as_bytes(bytes), "file.gguf");
  const auto& values = std::get<std::vector<int64_t>>(parsed.metadata.at("test.long"));
  ASSERT_EQ(std::ssize(values), kValues);
  EXPECT_EQ(values.capacity(), values.size());
  EXPECT_TRUE(std::ranges::all_of(values, [](int64_t value) { return value == -2; }));
}

TEST(Gguf, TensorsHaveTheirOutermostAxisFirstAndTheirOwnBytes) {
  const std::string file = small_gguf().build();
  const ParsedFile parsed = parse(file);
  ASSERT_EQ(parsed.tensors.size(), 3U);
  expect_sound(parsed, file);
  EXPECT_EQ(parsed.tensors[0].shape, (Shape{3, 4}));
  EXPECT_EQ(parsed.tensors[0].type, WeightType::f32);
  EXPECT_EQ(parsed.tensors[1].shape, (Shape{2, 32}));
  EXPECT_EQ(parsed.tensors[1].type, WeightType::q8_0);
  EXPECT_EQ(parsed.tensors[2].shape, Shape{1});
  for (size_t i = 0; i < 3; ++i)
    for (const std::byte byte : parsed.tensors[i].bytes) ASSERT_EQ(byte, static_cast<std::byte>(i + 1));
}

TEST(Gguf, AlignmentsOfOneAndOfAPageAreKept) {
  for (const uint32_t alignment : {1U, 8U, 4096U}) {
    GgufBuilder builder = small_gguf();
    builder.alignment = alignment;
    builder.add_u32("general.alignment", alignment);
    const std::string file = builder.build();
    expect_sound(parse(file), file);
    EXPECT_EQ(parse(file).tensors[2].bytes[0], std::byte{3}) << alignment;
  }
}

TEST(Gguf, FileWithoutTensorsMayEndAfterItsValues) {
  GgufBuilder builder = small_gguf();
  builder.tensors.clear();
  EXPECT_TRUE(parse(builder.build()).tensors.empty());
}

TEST(Gguf, TruncatedAnywhereIsRefused) {
  const std::string file = small_gguf().build();
  for (size_t length = 0; length < file.size(); ++length) {
    // A copy of that length, so that a read past the end is seen by the sanitizer.
    const std::string part = file.substr(0, length);
    EXPECT_ERROR(parse(part), "file.gguf") << length;
  }
}

TEST(Gguf, AnyByteOfTheHeaderMayBeWrong) {
  const std::string file = small_gguf().build();
  const size_t header = small_gguf().header().size();
  for (size_t at = 0; at < header; ++at) {
    for (const int byte : {0x00, 0x01, 0x02, 0x09, 0x20, 0x7F, 0x80, 0xFE, 0xFF, file[at] ^ 1, file[at] ^ 0x80}) {
      SCOPED_TRACE(fmt::format("byte {} becomes {}", at, byte));
      std::string changed = file;
      changed[at] = static_cast<char>(byte);
      expect_sound_or_refused(changed);
    }
  }
}

// Every place of the header, whatever it is, holds each edge number in each width.
TEST(Gguf, AnyFieldOfTheHeaderMayHoldAnyEdgeNumber) {
  const std::string file = small_gguf().build();
  const size_t header = small_gguf().header().size();
  for (size_t at = 0; at + 8 <= header; ++at) {
    for (const uint64_t number : test::edge_numbers()) {
      for (const size_t width : {4U, 8U}) {
        SCOPED_TRACE(fmt::format("{} bytes from {} on become {}", width, at, number));
        std::string changed = file;
        changed.replace(at, width, bytes_of(number), 0, width);
        expect_sound_or_refused(changed);
      }
    }
  }
}

TEST(Gguf, BrokenFilesAreRefusedWithTheReason) {
  for (const auto& broken : test::broken_ggufs()) {
    if (broken.complaint == "header") continue;  // another magic: no GGUF, and refused as what it then is
    EXPECT_ERROR(parse(broken.bytes), broken.complaint) << broken.name;
  }
}

TEST(Gguf, NamesFromTheFileAreMadePrintableInMessages) {
  GgufBuilder builder = small_gguf();
  builder.tensors[0].name = "evil\n\x1B[2J\"name" + std::string(1000, 'x');
  builder.tensors[0].type = 1000;
  try {
    (void)parse(builder.build());
    FAIL();
  } catch (const Error& error) {
    const std::string_view message = error.what();
    EXPECT_NE(message.find("evil??[2J?name"), std::string_view::npos) << message;
    EXPECT_LT(message.size(), 300U);
  }
}

TEST(Gguf, OpensFromAFileThroughTheCheckpoint) {
  const test::TempFolder folder;
  const std::string bytes = small_gguf().build();
  const auto checkpoint = Checkpoint::open(folder.write("model.gguf", bytes));
  EXPECT_EQ(checkpoint.format(), Checkpoint::Format::gguf);
  EXPECT_EQ(checkpoint.file_bytes(), static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(checkpoint.tensors().size(), 3U);
  EXPECT_EQ(checkpoint.tensor("scalar").shape, Shape{1});
  EXPECT_EQ(checkpoint.find("none"), nullptr);
  EXPECT_ERROR(checkpoint.tensor("none"), "no tensor \"none\"");
  EXPECT_ERROR(checkpoint.tensor("blocks").view(), "expected a plain type");
  EXPECT_EQ(checkpoint.tensor("matrix").view().shape(), (Shape{3, 4}));
}

}  // namespace
}  // namespace regard
