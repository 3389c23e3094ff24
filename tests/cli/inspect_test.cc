#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/child_process.h"
#include "cli/model_folder.h"

namespace regard::test {
namespace {

TEST(InspectCommand, JsonDescribesTheModelAndEveryLayer) {
  const ModelFolder folder(TinyLlama{.weight_type = gguf::type_q8_0});
  const Finished result = run_command({"inspect", folder.gguf, "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["model"], folder.gguf);
  EXPECT_EQ(json["family"], "llama");
  EXPECT_EQ(json["file_bytes"], std::filesystem::file_size(folder.gguf));
  EXPECT_EQ(json["hidden_size"], 32);
  EXPECT_EQ(json["num_layers"], 2);
  EXPECT_EQ(json["vocab_size"], 267);
  EXPECT_EQ(json["context_length"], 64);
  ASSERT_EQ(json["layers"].size(), 2U);
  const auto& layer = json["layers"][1];
  EXPECT_EQ(layer["layer"], 1);
  EXPECT_EQ(layer["num_attention_heads"], 4);
  EXPECT_EQ(layer["num_key_value_heads"], 2);
  EXPECT_EQ(layer["head_dim"], 8);
  EXPECT_EQ(layer["mask"], "causal");
  EXPECT_EQ(layer["rotary"]["rope_theta"], 10000.0);
  EXPECT_EQ(layer["weight_types"]["q"], "q8_0");
  // q and output are 32 x 32, k and v 16 x 32; 34 bytes hold 32 numbers.
  EXPECT_EQ(layer["weight_bytes"], (32 + 16 + 16 + 32) * 34);
  EXPECT_EQ(json["attention_weight_bytes"], 2 * (32 + 16 + 16 + 32) * 34);
  // 2 heads, keys and values of 8 floats.
  EXPECT_EQ(layer["kv_bytes_per_token"], 2 * (8 + 8) * 4);
  EXPECT_EQ(json["kv_bytes_per_token"], 2 * 2 * (8 + 8) * 4);
}

TEST(InspectCommand, TextPutsEqualLayersOnOneLine) {
  const ModelFolder folder(TinyLlama{.layers = 5});
  const Finished result = run_command({"inspect", folder.gguf});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(std::ranges::count(result.out, '\n'), 4) << result.out;
  EXPECT_NE(result.out.find("5 layers of width 32"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("\n0-4 "), std::string::npos) << result.out;
}

TEST(InspectCommand, AHuggingFaceFolderIsDescribedToo) {
  const TempFolder folder;
  TinyLlama().write_hugging_face(folder.path(), 2);
  const Finished result = run_command({"inspect", folder.path(), "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["vocab_size"], 267);
  EXPECT_EQ(json["layers"][0]["weight_types"]["output"], "f32");
}

}  // namespace
}  // namespace regard::test
