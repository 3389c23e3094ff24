#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "regard/checkpoint.h"
#include "regard/generation.h"
#include "regard/model.h"
#include "regard/tokenizer.h"

namespace regard::test {
namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

const TinyLlama kEndless{.context = 256, .has_end_token = false};

std::vector<std::string> keys_of(const Json& json) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  return keys;
}

Json generate_json(std::vector<std::string> arguments, std::string_view input = {}) {
  arguments.insert(arguments.begin(), "generate");
  arguments.emplace_back("--json");
  // Where the test does not care, one: a team waits long for a thread that a busy machine does not run.
  if (std::ranges::find(arguments, "--threads") == arguments.end())
    arguments.insert(arguments.end(), {"--threads", "1"});
  const Finished result = run_command(arguments, input);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(result.out.find('\n'), result.out.size() - 1) << "one line of JSON";
  return Json::parse(result.out);
}

TEST(GenerateCommand, JsonHasExactlyTheseKeysInThisOrder) {
  const ModelFolder folder(kEndless);
  const Json json = generate_json({"-m", folder.gguf, "-p", "the inn", "-n", "5"});
  EXPECT_EQ(keys_of(json), (std::vector<std::string>{"prompt_tokens", "tokens", "text", "restored_tokens",
                                                     "draft_tokens", "accepted_tokens", "prefill_tokens_per_second",
                                                     "decode_tokens_per_second", "peak_memory_bytes"}));
  for (const char* count : {"restored_tokens", "draft_tokens", "accepted_tokens"}) EXPECT_EQ(json[count], 0) << count;
  EXPECT_EQ(json["tokens"].size(), 5U);
  EXPECT_GT(json["prefill_tokens_per_second"].get<double>(), 0.0);
  EXPECT_GT(json["decode_tokens_per_second"].get<double>(), 0.0);
  EXPECT_GT(json["peak_memory_bytes"].get<int64_t>(), 100'000);
}

TEST(GenerateCommand, TokensAreThoseOfTheLibrary) {
  const ModelFolder folder(kEndless);
  const Json json = generate_json({"-m", folder.gguf, "-p", "the inn", "-n", "20"});
  const auto checkpoint = Checkpoint::open(folder.gguf);
  const auto tokenizer = Tokenizer::from(checkpoint);
  Workspace workspace(1);
  const auto decoder = Model::load(checkpoint, workspace.threads());
  const auto prompt = tokenizer.encode("the inn");
  const auto expected = regard::generate(decoder, {.prompt = prompt, .max_tokens = 20},
                                         {.end_tokens = tokenizer.end_tokens()}, workspace);
  EXPECT_EQ(json["prompt_tokens"].get<Ids>(), prompt);
  EXPECT_EQ(json["tokens"].get<Ids>(), expected.tokens);
}

TEST(GenerateCommand, TextIsPrintedAsItComesAndStatisticsGoToStandardError) {
  const ModelFolder folder(kEndless);
  const Finished result = run_command({"generate", "-m", folder.gguf, "-p", "the inn", "-n", "8", "--threads", "1"});
  EXPECT_EQ(result.exit_code, 0);
  const auto tokens = generate_json({"-m", folder.gguf, "-p", "the inn", "-n", "8"})["tokens"].get<Ids>();
  // The text of --json has U+FFFD for bytes that are no UTF-8; the stream has the bytes.
  EXPECT_EQ(result.out, Tokenizer::from(Checkpoint::open(folder.gguf)).decode(tokens) + "\n");
  EXPECT_TRUE(result.err.starts_with("[")) << result.err;
  EXPECT_NE(result.err.find("8 generated"), std::string::npos) << result.err;
}

TEST(GenerateCommand, ThePromptMayComeFromStandardInput) {
  const ModelFolder folder(kEndless);
  const std::string prompt = "the inn and\n\na hen";
  EXPECT_EQ(generate_json({"-m", folder.gguf, "-p", "-", "-n", "9"}, prompt)["tokens"],
            generate_json({"-m", folder.gguf, "-p", prompt, "-n", "9"})["tokens"]);
}

TEST(GenerateCommand, ThreadsDoNotChangeTheTokens) {
  const ModelFolder folder(kEndless);
  const auto tokens_with = [&](const char* threads) {
    return generate_json({"-m", folder.gguf, "-p", "the inn and the hen", "-n", "40", "--threads", threads})["tokens"];
  };
  const Json one = tokens_with("1");
  EXPECT_EQ(one.size(), 40U);
  EXPECT_EQ(tokens_with("2"), one);
  EXPECT_EQ(tokens_with("5"), one);
}

TEST(GenerateCommand, TheSeedDecidesWhatIsDrawn) {
  const ModelFolder folder(kEndless);
  const auto tokens_with = [&](const char* seed) {
    return generate_json(
        {"-m", folder.gguf, "-p", "the", "-n", "30", "--temperature", "1.5", "--seed", seed})["tokens"];
  };
  const Json first = tokens_with("1");
  EXPECT_EQ(tokens_with("1"), first);
  EXPECT_NE(tokens_with("2"), first);
}

TEST(GenerateCommand, TopOneIsTheMostLikelyTokenWhateverTheTemperature) {
  const ModelFolder folder(kEndless);
  const auto greedy = generate_json({"-m", folder.gguf, "-p", "the", "-n", "20"})["tokens"];
  EXPECT_EQ(generate_json({"-m", folder.gguf, "-p", "the", "-n", "20", "--temperature", "2", "--top-k", "1"})["tokens"],
            greedy);
  EXPECT_EQ(
      generate_json({"-m", folder.gguf, "-p", "the", "-n", "20", "--temperature", "2", "--top-p", "0.0001"})["tokens"],
      greedy);
}

TEST(GenerateCommand, TheContextEndsTheText) {
  const ModelFolder folder(TinyLlama{.context = 16, .has_end_token = false});
  const Json json = generate_json({"-m", folder.gguf, "-p", "qqqqqqqqqq", "-n", "1000"});
  EXPECT_EQ(json["prompt_tokens"].size(), 10U);
  EXPECT_EQ(json["tokens"].size(), 7U);  // the last one needs no place in the cache
}

TEST(GenerateCommand, AnEndTokenEndsTheTextAndIsNotShown) {
  // Every token is the end where the head has the same row for all of them: the lowest id wins.
  TinyLlama model;
  GgufBuilder gguf = model.gguf();
  gguf.tensor("output.weight").data.assign(gguf.tensor("output.weight").data.size(), '\0');
  const TempFolder folder;
  const std::string path = folder.write("model.gguf", gguf.build());
  const Json json = generate_json({"-m", path, "-p", "the", "-n", "10"});
  EXPECT_EQ(json["tokens"].get<Ids>(), Ids{0});
  EXPECT_EQ(json["text"], "");
  EXPECT_EQ(run_command({"generate", "-m", path, "-p", "the", "-n", "10"}).out, "\n");
}

TEST(GenerateCommand, AHuggingFaceFolderGivesTheTokensOfItsGgufForm) {
  const ModelFolder folder(kEndless);
  const TempFolder hugging_face;
  kEndless.write_hugging_face(hugging_face.path(), 3);
  EXPECT_EQ(generate_json({"-m", hugging_face.path(), "-p", "the inn", "-n", "20"})["tokens"],
            generate_json({"-m", folder.gguf, "-p", "the inn", "-n", "20"})["tokens"]);
}

TEST(GenerateCommand, DraftsChangeNothingButTheCounts) {
  const ModelFolder folder(kEndless);
  const std::string prompt = "the inn and the hen the inn and the hen the inn and";
  for (const std::vector<std::string>& sampler :
       {std::vector<std::string>{}, {"--temperature", "0.8", "--top-k", "5", "--seed", "7"}}) {
    std::vector<std::string> arguments = {"-m", folder.gguf, "-p", prompt, "-n", "150"};
    arguments.insert(arguments.end(), sampler.begin(), sampler.end());
    const Json plain = generate_json(arguments);
    arguments.insert(arguments.end(), {"--draft", "4"});
    const Json drafted = generate_json(arguments);
    EXPECT_EQ(drafted["tokens"], plain["tokens"]);
    EXPECT_GT(drafted["draft_tokens"].get<int>(), 0);
    EXPECT_LE(drafted["accepted_tokens"].get<int>(), drafted["draft_tokens"].get<int>());
  }
}

TEST(GenerateCommand, AModelOfTheSameVocabularyMayGuess) {
  const ModelFolder folder(kEndless);
  const ModelFolder small({.layers = 1, .context = 256, .has_end_token = false, .seed = 2});
  const std::vector<std::string> plain = {"-m", folder.gguf, "-p", "the inn", "-n", "40"};
  std::vector<std::string> guessed = plain;
  guessed.insert(guessed.end(), {"--draft-model", small.gguf});
  const Json result = generate_json(guessed);
  EXPECT_EQ(result["tokens"], generate_json(plain)["tokens"]);
  EXPECT_GT(result["draft_tokens"].get<int>(), 0);
}

TEST(GenerateCommand, TheSummaryTellsTheShareOfAcceptedTokens) {
  const ModelFolder folder(kEndless);
  const std::vector<std::string> arguments = {"-m", folder.gguf, "-p",      "the inn and the inn",
                                              "-n", "60",        "--draft", "4"};
  const Json json = generate_json(arguments);
  std::vector<std::string> command = {"generate", "--threads", "1"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const std::string expected =
      "; draft " + json["accepted_tokens"].dump() + " of " + json["draft_tokens"].dump() + " tokens accepted]\n";
  EXPECT_THAT(run_command(command).err, ::testing::EndsWith(expected));
}

// In another process, and with a prompt between.
TEST(GenerateCommand, ASavedTextGoesOnAsIfItHadNotStopped) {
  const ModelFolder folder(kEndless);
  const std::string cache = folder.file("text.safetensors");
  for (const std::string dtype : {"f32", "int8"}) {
    const auto run = [&](std::vector<std::string> arguments) {
      arguments.insert(arguments.end(), {"-m", folder.gguf, "--kv-dtype", dtype});
      return generate_json(arguments);
    };
    const Json whole = run({"-p", "the inn", "-n", "60"});
    const Json first = run({"-p", "the inn", "-n", "25", "--save-cache", cache});
    const Json rest = run({"--restore-cache", cache, "-n", "35", "--save-cache", cache});
    Ids tokens = first["tokens"].get<Ids>();
    for (const int32_t token : rest["tokens"].get<Ids>()) tokens.push_back(token);
    EXPECT_EQ(tokens, whole["tokens"].get<Ids>()) << dtype;
    EXPECT_EQ(rest["restored_tokens"].get<size_t>(), first["prompt_tokens"].size() + 24);
    EXPECT_EQ(rest["prompt_tokens"], Json::array());
    const Json more = run({"--restore-cache", cache, "-p", " a hen", "-n", "10"});
    EXPECT_EQ(more["restored_tokens"].get<size_t>(), first["prompt_tokens"].size() + 59);
    EXPECT_EQ(more["tokens"].size(), 10U);
  }
}

// The continuation of ids is that of the text they stand for.
TEST(GenerateCommand, TokensInsteadOfAPromptGiveTokens) {
  const ModelFolder folder(kEndless);
  const Json by_text = generate_json({"-m", folder.gguf, "-p", "the inn", "-n", "8"});
  const auto prompt = by_text["prompt_tokens"].get<Ids>();
  const std::string list = fmt::format("{}", fmt::join(prompt, ","));
  const Json by_tokens = generate_json({"-m", folder.gguf, "--tokens", list, "-n", "8"});
  EXPECT_EQ(by_tokens["prompt_tokens"], by_text["prompt_tokens"]);
  EXPECT_EQ(by_tokens["tokens"], by_text["tokens"]);
  EXPECT_FALSE(by_tokens.contains("text"));
  const Finished plain = run_command({"generate", "-m", folder.gguf, "--tokens", list, "-n", "8"});
  EXPECT_EQ(plain.exit_code, 0) << plain.err;
  EXPECT_EQ(plain.out, fmt::format("{}\n", fmt::join(by_text["tokens"].get<Ids>(), ",")));
  EXPECT_TRUE(plain.err.starts_with(fmt::format("[{} prompt tokens, 8 generated", prompt.size()))) << plain.err;
}

// Each token is the one of the largest of transformers' logits.
TEST(GenerateCommand, TokensNeedNoTokenizer) {
  const std::string model = REGARD_TEST_DATA "/golden/families/olmo2";
  const auto reference = Checkpoint::open(model + "/golden.safetensors");
  const auto tokens = reference.tensor("tokens").view().elements<int32_t>();
  const auto logits = reference.tensor("logits").view();
  const auto width = static_cast<size_t>(logits.size(1));
  for (const size_t count : {size_t{1}, size_t{9}, tokens.size()}) {
    const auto row = logits.elements<double>().subspan((count - 1) * width, width);
    const auto expected = std::ranges::max_element(row) - row.begin();
    const std::string list = fmt::format("{}", fmt::join(tokens.first(count), ","));
    const Finished result = run_command({"generate", "-m", model, "--tokens", list, "-n", "1"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, fmt::format("{}\n", expected));
  }
}

// Without a tokenizer the config's eos_token_id ends a text.
TEST(GenerateCommand, EndTokensComeFromTheConfigsWhereThereIsNoTokenizer) {
  const TempFolder folder;
  TinyLlama(kEndless).write_hugging_face(folder.path());
  std::filesystem::remove(folder.path() / "tokenizer.json");
  const std::vector<std::string> command = {"-m", folder.path(), "--tokens", "5,17,9", "-n", "12"};
  const auto endless = generate_json(command)["tokens"].get<Ids>();
  ASSERT_EQ(endless.size(), 12U);
  const auto first = std::ranges::find(endless, endless[5]) - endless.begin();
  folder.write("generation_config.json", Json{{"eos_token_id", {endless[5]}}}.dump());
  EXPECT_EQ(generate_json(command)["tokens"].get<Ids>(), Ids(endless.begin(), endless.begin() + first + 1));
}

}  // namespace
}  // namespace regard::test
