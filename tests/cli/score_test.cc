#include "engine/score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "regard/model.h"
#include "regard/tokenizer.h"

namespace regard::test {
namespace {

using Json = nlohmann::ordered_json;

TEST(ScoreCommand, JsonHasExactlyTheseKeysAndTheLibrarysNumber) {
  const ModelFolder folder;
  const std::string text = folder.write("text.txt", "the inn and the hen");
  const Finished result = run_command({"score", "-m", folder.gguf, "-f", text, "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  const Json json = Json::parse(result.out);
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{"tokens", "mean_nll", "tokens_per_second"}));

  const auto checkpoint = Checkpoint::open(folder.gguf);
  const auto tokens = Tokenizer::from(checkpoint).encode("the inn and the hen");
  Workspace workspace(1);
  const auto decoder = Model::load(checkpoint, workspace.threads());
  EXPECT_EQ(json["tokens"], tokens.size());
  EXPECT_EQ(json["mean_nll"].get<double>(), score(decoder, tokens, workspace, [](int64_t) {}).mean_nll);
}

TEST(ScoreCommand, EveryNameOfACacheTypeIsThatType) {
  const ModelFolder folder;
  const std::string text = folder.write("text.txt", "the inn and the hen");
  const auto checkpoint = Checkpoint::open(folder.gguf);
  const auto tokens = Tokenizer::from(checkpoint).encode("the inn and the hen");
  Workspace workspace(1);
  const auto decoder = Model::load(checkpoint, workspace.threads());
  const std::pair<const char*, DType> names[] = {
      {"f32", DType::f32}, {"bf16", DType::bf16},   {"f16", DType::f16},          {"int8", DType::i8},
      {"int4", DType::i4}, {"fp8", DType::f8_e4m3}, {"fp8_e4m3", DType::f8_e4m3}, {"fp8_e5m2", DType::f8_e5m2}};
  std::map<DType, double> scores;
  for (const auto& [name, dtype] : names) {
    SCOPED_TRACE(name);
    const Finished result = run_command({"score", "-m", folder.gguf, "-f", text, "--json", "--kv-dtype", name});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    scores[dtype] = score(
                        decoder, tokens, workspace, [](int64_t) {}, dtype)
                        .mean_nll;
    EXPECT_EQ(Json::parse(result.out)["mean_nll"].get<double>(), scores[dtype]);
  }
  EXPECT_NE(scores[DType::i4], scores[DType::i8]);
}

// With a head of zeros every token is equally likely.
TEST(ScoreCommand, AnUndecidedModelScoresTheLogarithmOfItsVocabulary) {
  GgufBuilder gguf = TinyLlama().gguf();
  gguf.tensor("output.weight").data.assign(gguf.tensor("output.weight").data.size(), '\0');
  const TempFolder folder;
  const std::string model = folder.write("model.gguf", gguf.build());
  const Finished result = run_command({"score", "-m", model, "-f", folder.write("text.txt", "abcdef"), "--json"});
  EXPECT_NEAR(Json::parse(result.out)["mean_nll"].get<double>(), std::log(267.0), 1e-6);
}

TEST(ScoreCommand, MaxTokensTakesTheBeginning) {
  const ModelFolder folder;
  const auto scored = [&](const std::string& text, const char* tokens) {
    const std::string file = folder.write("text.txt", text);
    return Json::parse(run_command({"score", "-m", folder.gguf, "-f", file, "--json", "--max-tokens", tokens}).out);
  };
  const Json beginning = scored("qwqwqw", "1000");
  EXPECT_EQ(beginning["tokens"], 6);
  // Longer than the context of 64, but only six of it are scored.
  const Json cut = scored("qwqwqw" + std::string(500, 'z'), "6");
  EXPECT_EQ(cut["tokens"], 6);
  EXPECT_EQ(cut["mean_nll"], beginning["mean_nll"]);
}

TEST(ScoreCommand, AListOfTokensScoresAsTheTextDoes) {
  const ModelFolder folder;
  const std::string text = folder.write("text.txt", "the inn and the hen");
  const auto tokens = Tokenizer::from(Checkpoint::open(folder.gguf)).encode("the inn and the hen");
  const std::string ids = folder.write("ids.json", Json(tokens).dump());
  const auto scored = [&](const std::vector<std::string>& what) {
    std::vector<std::string> command = {"score", "-m", folder.gguf, "--json"};
    command.insert(command.end(), what.begin(), what.end());
    const Finished result = run_command(command);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Json::parse(result.out);
  };
  const Json by_text = scored({"-f", text});
  const Json by_tokens = scored({"--tokens", ids});
  EXPECT_EQ(by_tokens["tokens"], tokens.size());
  EXPECT_EQ(by_tokens["mean_nll"], by_text["mean_nll"]);
  EXPECT_EQ(scored({"--tokens", ids, "--max-tokens", "3"})["tokens"], 3);
}

TEST(ScoreCommand, TokensNeedNoTokenizer) {
  const TempFolder folder;
  const std::string model = REGARD_TEST_DATA "/golden/families/llama";
  const Finished result = run_command({"score", "-m", model, "--tokens", folder.write("ids.json", "[5, 17, 9]")});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(result.out.starts_with("3 tokens, ")) << result.out;
}

TEST(ScoreCommand, PlainOutputIsOneLine) {
  const ModelFolder folder;
  const Finished result = run_command({"score", "-m", folder.gguf, "-f", folder.write("text.txt", "the inn")});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_TRUE(result.out.starts_with("5 tokens, mean negative log likelihood ")) << result.out;
  EXPECT_EQ(result.out.find('\n'), result.out.size() - 1);
  EXPECT_EQ(result.err, "");
}

}  // namespace
}  // namespace regard::test
