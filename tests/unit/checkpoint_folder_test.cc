// Which files a path stands for, and what is said where it stands for none.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "regard/checkpoint.h"
#include "regard/model.h"
#include "support/expect_error.h"
#include "support/gguf_builder.h"
#include "support/safetensors_builder.h"
#include "support/temp_folder.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

using test::TempFolder;
using test::TinyLlama;

constexpr const char* kIndex = "model.safetensors.index.json";

std::string shard(const std::string& tensor) {
  return test::safetensors_bytes({{.name = tensor, .dtype = "F32", .shape = {1}, .data = "1234"}});
}

TEST(CheckpointFolder, AFileThatHasBecomeShorterIsNoModel) {
  const TempFolder folder;
  const std::string file = folder.write("model.gguf", TinyLlama().gguf().build());
  const auto checkpoint = Checkpoint::open(file);
  checkpoint.check_sizes();
  // Less than a page: all of the mapping can be read, the end as zeros.
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  EXPECT_ERROR(checkpoint.check_sizes(), "bytes when it was opened and has");
  EXPECT_ERROR(Model::load(checkpoint, Threads(1)), file);
}

TEST(CheckpointFolder, FilesAreAllThatIsRead) {
  const TempFolder folder;
  TinyLlama().write_hugging_face(folder.path(), 2);
  const auto files = Checkpoint::open(folder.path()).files();
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    EXPECT_EQ(std::ranges::count(files, entry.path()), 1) << entry.path();
}

TEST(CheckpointFolder, ShardsOfAnIndexAreOneCheckpoint) {
  const TempFolder whole;
  const TempFolder sharded;
  TinyLlama().write_hugging_face(whole.path());
  TinyLlama().write_hugging_face(sharded.path(), 3);
  const auto expected = Checkpoint::open(whole.path());
  for (const auto& path : {sharded.path(), sharded.path() / kIndex}) {
    const auto checkpoint = Checkpoint::open(path);
    ASSERT_EQ(checkpoint.tensors().size(), expected.tensors().size());
    for (size_t i = 0; i < expected.tensors().size(); ++i) {
      EXPECT_EQ(checkpoint.tensors()[i].name, expected.tensors()[i].name);
      EXPECT_TRUE(std::ranges::equal(checkpoint.tensors()[i].bytes, expected.tensors()[i].bytes));
    }
    EXPECT_EQ(checkpoint.config_json(), expected.config_json());
    EXPECT_EQ(checkpoint.tokenizer_json(), expected.tokenizer_json());
  }
}

TEST(CheckpointFolder, TheOnlyFileOfAFolderIsTheCheckpoint) {
  const TempFolder folder;
  folder.write("something.gguf", test::small_gguf().build());
  folder.write("README.md", "text");
  EXPECT_EQ(Checkpoint::open(folder.path()).tensors().size(), 3U);
  folder.write("other.safetensors", shard("a"));
  EXPECT_ERROR(Checkpoint::open(folder.path()), "holds 2 checkpoint files");
  folder.write("model.safetensors", shard("b"));
  EXPECT_NE(Checkpoint::open(folder.path()).find("b"), nullptr);
}

TEST(CheckpointFolder, PathsThatHoldNoCheckpointAreRefused) {
  const TempFolder folder;
  EXPECT_ERROR(Checkpoint::open(folder.file("none.gguf")), "does not exist");
  EXPECT_ERROR(Checkpoint::open(folder.file("none/none.gguf")), "does not exist");
  EXPECT_ERROR(Checkpoint::open(""), "does not exist");
  EXPECT_ERROR(Checkpoint::open(std::string(10'000, 'x')), "does not exist");
  EXPECT_ERROR(Checkpoint::open(folder.path()), "holds no .safetensors and no .gguf");
  EXPECT_ERROR(Checkpoint::open(folder.write("empty.gguf", "")), "is empty");
  EXPECT_ERROR(Checkpoint::open(folder.write("text.txt", "hello, world")), "header");
  EXPECT_ERROR(Checkpoint::open("/dev/null"), "is no regular file");
  std::filesystem::create_directory(folder.path() / "folder.gguf");
  EXPECT_ERROR(Checkpoint::open(folder.file("folder.gguf")), "holds no .safetensors and no .gguf");
}

TEST(CheckpointFolder, APipeIsRefusedWithoutWaitingForAWriter) {
  const TempFolder folder;
  ASSERT_EQ(mkfifo(folder.file("pipe.gguf").c_str(), 0600), 0);
  EXPECT_ERROR(Checkpoint::open(folder.file("pipe.gguf")), "is no regular file");
}

TEST(CheckpointFolder, BrokenIndexesAreRefused) {
  const auto open = [](std::string_view index) {
    const TempFolder folder;
    folder.write("a.safetensors", shard("a"));
    folder.write("b.safetensors", shard("b"));
    folder.write(kIndex, index);
    return Checkpoint::open(folder.path()).tensors().size();
  };
  EXPECT_EQ(open(R"({"weight_map":{"a":"a.safetensors","b":"b.safetensors"}})"), 2U);
  for (const char* index : {"", "hello", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":"a.safetensors"})"})
    EXPECT_ERROR(open(index), "no object \"weight_map\"") << index;
  EXPECT_ERROR(open(R"({"weight_map":{}})"), "names no files");
  EXPECT_ERROR(open(R"({"weight_map":{"a":7}})"), "is in no file");
  for (const char* file :
       {"../a.safetensors", "/etc/passwd", "x/a.safetensors", "", "./a.safetensors", "a.safetensors\\u0000"})
    EXPECT_ERROR(open(R"({"weight_map":{"a":")" + std::string(file) + "\"}}"), "expected a file beside the index")
        << file;
  EXPECT_ERROR(open(R"({"weight_map":{"a":".."}})"), "expected a file beside the index");
  EXPECT_ERROR(open(R"({"weight_map":{"a":"c.safetensors"}})"), "c.safetensors can't be opened");
  EXPECT_ERROR(open(R"({"weight_map":{"a":"a.safetensors","b":"a.safetensors"}})"), "tensor \"b\"");
  EXPECT_ERROR(open(R"({"weight_map":{"a":"a.safetensors","c":"b.safetensors"}})"), "tensor \"c\"");
}

TEST(CheckpointFolder, ATensorInTwoShardsIsRefused) {
  const TempFolder folder;
  folder.write("a.safetensors", shard("a"));
  folder.write("b.safetensors", test::safetensors_bytes({{.name = "a", .dtype = "F32", .shape = {1}, .data = "1234"},
                                                         {.name = "b", .dtype = "F32", .shape = {1}, .data = "1234"}}));
  folder.write(kIndex, R"({"weight_map":{"a":"a.safetensors","b":"b.safetensors"}})");
  EXPECT_ERROR(Checkpoint::open(folder.path()), "tensor \"a\" comes in two files");
}

}  // namespace
}  // namespace regard
