#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "regard/checkpoint.h"

namespace regard::test {
namespace {

void expect_complaint(const std::vector<std::string>& arguments, std::string_view part) {
  const Finished result = run_command(arguments);
  EXPECT_EQ(result.exit_code, 2) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(result.err.starts_with("regard: ")) << result.err;
  EXPECT_EQ(std::ranges::count(result.err, '\n'), 1) << result.err;
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
}

TEST(ShardCommand, WritesAFileForEachRankAndAManifest) {
  const ModelFolder folder(TinyLlama{.weight_type = gguf::type_q8_0});
  const std::string out = folder.file("new/shards");
  const Finished result = run_command({"shard", "-m", folder.gguf, "--tp", "2", "-o", out});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(std::ranges::count(result.out, '\n'), 2) << result.out;
  EXPECT_NE(result.out.find("rank-00001-of-00002.safetensors: 21 tensors"), std::string::npos) << result.out;
  const auto manifest = nlohmann::json::parse(read_whole_file(out + "/manifest.json"));
  EXPECT_EQ(manifest["tp_degree"], 2);
  EXPECT_EQ(manifest["gqa"], "replicate-to-tp-degree");
  EXPECT_EQ(manifest["family"], "llama");
  EXPECT_EQ(manifest["source"], "model.gguf");
  const auto& q = manifest["files"][1]["tensors"]["blk.1.attn_q.weight"];
  EXPECT_EQ(q["type"], "q8_0");
  EXPECT_EQ(q["shape"], (std::vector<int>{16, 32}));
  EXPECT_EQ(q["bytes"], 16 * 34);
  EXPECT_EQ(Checkpoint::open_shard(out, 1).tensors().size(), 21U);
}

TEST(ShardCommand, JsonListsTheFiles) {
  const ModelFolder folder;
  const std::string out = folder.file("shards");
  const Finished result =
      run_command({"shard", "-m", folder.gguf, "--tp", "3", "-o", out, "--gqa", "convert-to-mha", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["tp_degree"], 3);
  EXPECT_EQ(json["gqa"], "convert-to-mha");
  ASSERT_EQ(json["files"].size(), 3U);
  for (const auto& file : json["files"])
    EXPECT_EQ(file["bytes"], std::filesystem::file_size(file["path"].get<std::string>()));
}

TEST(ShardCommand, WrongInputIsRefused) {
  const ModelFolder folder;
  const std::string out = folder.file("shards");
  expect_complaint({"shard", "-m", folder.gguf, "--tp", "2"}, "--output");
  expect_complaint({"shard", "-m", folder.gguf, "-o", out}, "--tp");
  expect_complaint({"shard", "--tp", "2", "-o", out}, "--model");
  for (const char* tp : {"0", "-1", "1025", "two", ""})
    expect_complaint({"shard", "-m", folder.gguf, "--tp", tp, "-o", out}, "--tp");
  expect_complaint({"shard", "-m", folder.gguf, "--tp", "2", "-o", out, "--gqa", "split"}, "--gqa");
  expect_complaint({"shard", "-m", folder.file("none"), "--tp", "2", "-o", out}, "does not exist");
  expect_complaint({"shard", "-m", folder.gguf, "--tp", "2", "-o", folder.gguf}, "can't be made a folder");
  EXPECT_FALSE(std::filesystem::exists(out));
  std::filesystem::create_directory(out);
  folder.write("shards/manifest.json", "{}");
  expect_complaint({"shard", "-m", folder.gguf, "--tp", "2", "-o", out}, "manifest.json is in the way");
  const Finished forced = run_command({"shard", "-m", folder.gguf, "--tp", "2", "-o", out, "--force"});
  EXPECT_EQ(forced.exit_code, 0) << forced.err;
  expect_complaint({"inspect", out}, "holds a model cut for ranks");
}

}  // namespace
}  // namespace regard::test
