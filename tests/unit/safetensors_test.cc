#include <fmt/format.h>
#include <gtest/gtest.h>

#include "checkpoint/parsed_file.h"
#include "regard/checkpoint.h"
#include "support/broken_files.h"
#include "support/byte_writer.h"
#include "support/expect_error.h"
#include "support/safetensors_builder.h"
#include "support/sanitized.h"
#include "support/temp_folder.h"

namespace regard {
namespace {

using test::as_bytes;
using test::safetensors_bytes;
using test::TempFolder;

ParsedFile parse(std::string_view bytes) { return parse_safetensors(as_bytes(bytes), "file.safetensors"); }

std::string small_file() {
  return safetensors_bytes({{.name = "a", .dtype = "F32", .shape = {2, 3}, .data = std::string(24, '\1')},
                            {.name = "b", .dtype = "BF16", .shape = {}, .data = std::string(2, '\2')},
                            {.name = "c", .dtype = "U8", .shape = {0, 5}, .data = ""},
                            {.name = "d", .dtype = "I64", .shape = {1}, .data = std::string(8, '\4')}});
}

void expect_sound_or_refused(const std::string& file) {
  try {
    for (const StoredTensor& tensor : parse(file).tensors) {
      const auto* begin = reinterpret_cast<const char*>(tensor.bytes.data());
      ASSERT_GE(begin, file.data());
      ASSERT_LE(tensor.bytes.size(), static_cast<size_t>(file.data() + file.size() - begin));
      ASSERT_EQ(static_cast<int64_t>(tensor.bytes.size()), tensor.shape.elements() * block_of(tensor.type).bytes);
    }
  } catch (const Error& error) {
    EXPECT_TRUE(std::string_view(error.what()).starts_with("checkpoint: file.safetensors")) << error.what();
  }
}

TEST(Safetensors, TensorsHaveTheirTypesShapesAndBytes) {
  const std::string file = small_file();
  const ParsedFile parsed = parse(file);
  ASSERT_EQ(parsed.tensors.size(), 4U);
  EXPECT_EQ(parsed.tensors[0].shape, (Shape{2, 3}));
  EXPECT_EQ(parsed.tensors[0].bytes[23], std::byte{1});
  EXPECT_EQ(parsed.tensors[1].shape, Shape{});
  EXPECT_EQ(parsed.tensors[1].type, WeightType::bf16);
  EXPECT_EQ(parsed.tensors[2].shape, (Shape{0, 5}));
  EXPECT_EQ(parsed.tensors[3].bytes[0], std::byte{4});
}

TEST(Safetensors, MetadataIsRead) {
  EXPECT_EQ(parse(safetensors_bytes(R"({"__metadata__":{"format":"pt"}})", "")).strings.at("format"), "pt");
}

// It takes seconds. Time that grows with the square of their number is more than ctest's limit of 20 minutes.
TEST(Safetensors, AHeaderOfManyTensorsIsReadInLinearTime) {
  constexpr int kTensors = test::kSanitized ? 20'000 : 550'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i)
    header +=
        fmt::format(R"({}"{}":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}})", i > 0 ? "," : "", i, i, i + 1);
  const std::string file = safetensors_bytes(header + "}", std::string(kTensors, 'x'));
  EXPECT_EQ(parse(file).tensors.size(), size_t{kTensors});
}

TEST(Safetensors, TruncatedAnywhereIsRefused) {
  const std::string file = small_file();
  for (size_t length = 0; length < file.size(); ++length) {
    const std::string part = file.substr(0, length);
    EXPECT_ERROR(parse(part), "file.safetensors") << length;
  }
}

TEST(Safetensors, AnyByteOfTheHeaderMayBeWrong) {
  const std::string file = small_file();
  for (size_t at = 0; at < file.size() - 34; ++at) {
    for (const int byte : {0x00, 0x01, 0x20, 0x22, 0x2C, 0x30, 0x39, 0x5B, 0x5D, 0x7B, 0x7D, 0x7F, 0x80, 0xFF}) {
      SCOPED_TRACE(fmt::format("byte {} becomes {}", at, byte));
      std::string changed = file;
      changed[at] = static_cast<char>(byte);
      expect_sound_or_refused(changed);
    }
  }
}

TEST(Safetensors, BrokenFilesAreRefusedWithTheReason) {
  for (const auto& broken : test::broken_safetensors())
    EXPECT_ERROR(parse(broken.bytes), broken.complaint) << broken.name;
}

TEST(Safetensors, WhatIsSavedIsReadBack) {
  const TempFolder folder;
  Tensor matrix(DType::f32, {2, 3});
  matrix.elements<float>()[5] = 7.5F;
  const Tensor numbers(DType::i64, {4});
  save_safetensors(folder.file("out.safetensors"),
                   std::array<NamedTensor, 2>{{{"matrix", matrix}, {"numbers", numbers}}}, {{"made", "here"}});
  const auto checkpoint = Checkpoint::open(folder.file("out.safetensors"));
  EXPECT_EQ(checkpoint.tensor("matrix").view().elements<float>()[5], 7.5F);
  EXPECT_EQ(checkpoint.tensor("numbers").shape, Shape{4});
  EXPECT_EQ(checkpoint.safetensors_metadata().at("made"), "here");
}

TEST(Safetensors, SavingTwiceTheSameNameIsRefusedAndLeavesTheOldFile) {
  const TempFolder folder;
  const std::string path = folder.write("out.safetensors", "old");
  const Tensor tensor(DType::f32, {1});
  const std::array<NamedTensor, 2> tensors = {{{"a", tensor}, {"a", tensor}}};
  EXPECT_ERROR(save_safetensors(path, tensors), "comes twice");
  EXPECT_EQ(test::read_whole_file(path), "old");
}

TEST(Safetensors, SavingWhereNothingCanBeWrittenIsRefusedAndLeavesNothingBehind) {
  const TempFolder folder;
  std::filesystem::create_directory(folder.path() / "taken");
  const Tensor tensor(DType::f32, {1});
  const std::array<NamedTensor, 1> tensors = {{{"a", tensor}}};
  EXPECT_ERROR(save_safetensors(folder.file("none/out.safetensors"), tensors), "can't be written");
  EXPECT_ERROR(save_safetensors(folder.file("taken"), tensors), "can't be written");
  EXPECT_ERROR(save_safetensors("/proc/out.safetensors", tensors), "can't be written");
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    EXPECT_EQ(entry.path().filename(), "taken");
}

}  // namespace
}  // namespace regard
