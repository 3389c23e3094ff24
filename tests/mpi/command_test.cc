#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "kernels/targets.h"
#include "mpi/launched.h"

// The command on ranks that mpirun (REGARD_COMMAND) starts.
namespace regard::test {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

Words generate(const ModelFolder& folder, int ranks, const Words& more) {
  Words words = {"-n", std::to_string(ranks), REGARD_PROGRAM, "generate", "-m", folder.gguf, "--max-tokens", "4"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

Finished launch(const std::vector<Words>& programs, std::string_view input = {}) {
  return run_command(launch_words(programs), input);
}

// The launcher has words of its own.
void expect_refused(const Finished& result, const std::string& sentence) {
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("regard: " + sentence));
  const size_t first = result.err.find("regard: ");
  EXPECT_EQ(result.err.find("regard: ", first + 1), std::string::npos) << result.err;
}

TEST(RanksOfMpirun, OneRankIsTheOrdinaryCommand) {
  const ModelFolder folder;
  const Finished result = launch({generate(folder, 1, {"-p", "the inn", "--tp", "1"})});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out, "");
}

TEST(RanksOfMpirun, AreAsManyAsTheOptionsSay) {
  const ModelFolder folder;
  expect_refused(launch({generate(folder, 2, {"-p", "the", "--tp", "2", "--cp", "2"})}),
                 "ranks are 2, but --tp 2 times --cp 2 is 4, expected the same; start them with: mpirun -n 4 regard");
  expect_refused(launch({generate(folder, 2, {"-p", "the"})}),
                 "ranks are 2, but --tp 1 times --cp 1 is 1, expected the same; give --tp 2");
}

TEST(RanksOfMpirun, CommandsWithoutRanksRunInOneProcess) {
  const ModelFolder folder;
  const auto refused = [&](Words words) {
    const std::string command = "regard " + words.front();
    words.insert(words.begin(), {"-n", "2", REGARD_PROGRAM});
    expect_refused(launch({words}), command + " runs in one process, but 2 were started; start it without mpirun");
  };
  refused({"shard", "-m", folder.gguf, "--tp", "2", "-o", folder.file("cut")});
  refused({"attend", "-m", folder.gguf, "--layer", "0", "--input", folder.gguf, "--output", folder.file("out")});
  refused({"verify", "-m", folder.gguf});
  refused({"bench"});
  refused({"inspect", folder.gguf});
  refused({"plan", "-m", folder.gguf, "--ranks", "2", "--context", "8"});
}

TEST(RanksOfMpirun, WhatAllGetWrongIsSaidOnce) {
  const ModelFolder folder;
  expect_refused(launch({generate(folder, 3, {"--tp", "3", "-p", "the", "--nonsense"})}),
                 "The following argument was not expected: --nonsense");
  expect_refused(launch({generate(folder, 3, {"--tp", "3", "-p", ""})}), "");
}

TEST(RanksOfMpirun, WhatOneGetsWrongEndsAll) {
  const ModelFolder folder;
  const Finished result = launch({generate(folder, 1, {"--tp", "2", "-p", "the"}),
                                  {"-n", "1", REGARD_PROGRAM, "generate", "--tp", "2", "--max-tokens", "0"}});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("rank 1: regard: --max-tokens"));
}

TEST(RanksOfMpirun, HaveToBeToldTheSame) {
  const ModelFolder folder;
  const Words first = {"--tp", "2", "-p", "the"};
  const struct {
    Words second;
    const char* sentence;
  } cases[] = {
      {{"--cp", "2", "-p", "the"}, "--tp is \"2\" on rank 0, but \"1\" on rank 1"},
      {{"--tp", "2", "-p", "the", "--dp", "2"}, "--dp is \"1\" on rank 0, but \"2\" on rank 1"},
      {{"--tp", "2", "-p", "-"}, "--prompt is \"the\" on rank 0, but \"-\" on rank 1"},
      {{"--tp", "2", "-p", "the", "--seed", "7"}, "--seed is \"0\" on rank 0, but \"7\" on rank 1"},
  };
  for (const auto& other : cases)
    expect_refused(launch({generate(folder, 1, first), generate(folder, 1, other.second)}),
                   std::string("ranks disagree: ") + other.sentence);
}

TEST(RanksOfMpirun, HaveToHoldTheSameModel) {
  const ModelFolder folder;
  const ModelFolder other({.seed = 2});
  const Words words = {"--tp", "2", "-p", "the"};
  expect_refused(launch({generate(folder, 1, words), generate(other, 1, words)}),
                 "ranks disagree: the model's digest is ");
}

// Zeros where the samples of the digest do not look.
std::string damaged(const ModelFolder& folder) {
  std::string bytes = read_whole_file(folder.gguf);
  // The last tensor's first quarter.
  std::fill_n(bytes.end() - 64 * 1024, 1024, '\0');
  return folder.write("damaged.gguf", bytes);
}

TEST(RanksOfMpirun, CompareWholeFilesWhereAskedTo) {
  const ModelFolder folder({.hidden = 256, .intermediate = 512});
  const std::string other = damaged(folder);
  const auto words = [&](const std::string& model, const Words& more) {
    Words all = {"-n", "1", REGARD_PROGRAM, "generate", "-m", model, "--tp", "2", "-p", "the", "--max-tokens", "1"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  EXPECT_THAT(launch({words(folder.gguf, {}), words(other, {})}).err, Not(HasSubstr("digest")));
  expect_refused(launch({words(folder.gguf, {"--verify"}), words(other, {"--verify"})}),
                 "ranks disagree: the model's digest is ");
  EXPECT_EQ(launch({words(folder.gguf, {"--verify"}), words(folder.gguf, {"--verify"})}).exit_code, 0);
}

// The head, which every rank has whole, with other signs where the samples of the digest do not look.
std::string with_another_head(const ModelFolder& folder, const TinyLlama& model) {
  GgufBuilder file = model.gguf();
  std::string& head = file.tensor("output.weight").data;
  constexpr size_t kSampled = 64;
  for (size_t sign = 3; sign < head.size(); sign += 4) {
    const bool in_the_middle = sign + kSampled > head.size() / 2 && sign < head.size() / 2 + kSampled;
    if (sign >= kSampled && sign + kSampled < head.size() && !in_the_middle)
      head[sign] = static_cast<char>(head[sign] ^ '\x80');
  }
  return folder.write("another.gguf", file.build());
}

TEST(RanksOfMpirun, ThatDrawDifferentTokensEnd) {
  const TinyLlama model{.context = 1024};
  const ModelFolder folder(model);
  const std::string other = with_another_head(folder, model);
  const auto words = [&](const std::string& path) {
    return Words{"-n",   "1", REGARD_PROGRAM, "generate", "-m",           path,
                 "--tp", "2", "-p",           "the inn",  "--max-tokens", "1000"};
  };
  const Finished result = launch({words(folder.gguf), words(other)});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, StartsWith("regard: ranks disagree: the token drawn at position "));
}

TEST(RanksOfMpirun, HaveToBeOfTheSameBuild) {
  const ModelFolder folder;
  const auto id = nlohmann::json::parse(
                      run_command(launch_words({{"-n", "1", REGARD_PROGRAM, "show-config", "--json"}})).out)["build_id"]
                      .get<std::string>();
  std::string binary_id;
  for (size_t at = 0; at < id.size(); at += 2) binary_id += static_cast<char>(std::stoi(id.substr(at, 2), nullptr, 16));
  std::string program = read_whole_file(REGARD_PROGRAM);
  const size_t at = program.find(binary_id);
  ASSERT_NE(at, program.npos);
  program[at] = static_cast<char>(program[at] ^ 1);
  const std::string other = folder.write("regard", program);
  std::filesystem::permissions(other, std::filesystem::perms::owner_all);
  Words second = generate(folder, 1, {"--tp", "2", "-p", "the"});
  second[2] = other;
  expect_refused(launch({generate(folder, 1, {"--tp", "2", "-p", "the"}), second}),
                 "ranks disagree: the build id is \"" + id + "\" on rank 0, but ");
}

TEST(RanksOfMpirun, HaveToUseTheSameInstructionSet) {
  const auto targets = kernels::supported_targets();
  if (targets.size() < 2) GTEST_SKIP() << "the machine has one instruction set";
  const ModelFolder folder;
  const Words first = generate(folder, 1, {"--tp", "2", "-p", "the"});
  Words second = first;
  second.insert(second.begin() + 2, {"env", "REGARD_TARGET=" + targets[1]});
  expect_refused(launch({first, second}), "ranks disagree: the instruction set, which REGARD_TARGET chooses, is \"" +
                                              targets[0] + "\" on rank 0, but \"" + targets[1] + "\" on rank 1");
}

TEST(RanksOfMpirun, OfAHostAreShownInALine) {
  const ModelFolder folder;
  Words words = generate(folder, 2, {"--tp", "2", "-p", "the", "--threads", "1", "--show-ranks"});
  words.insert(words.begin() + 2, {"env", "REGARD_TARGET=" + kernels::supported_targets().back()});
  const Finished result = launch({words});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, StartsWith("[host "));
  EXPECT_THAT(result.err, HasSubstr(", " + kernels::supported_targets().back() + ", 1 thread a rank, cores 0"));
  EXPECT_THAT(result.err, HasSubstr("; ranks 0, 1]\n["));  // one line, then the summary
}

nlohmann::json json_of(const Finished& result) {
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return result.exit_code == 0 ? nlohmann::json::parse(result.out) : nlohmann::json::object();
}

// `mpirun -n RANKS regard generate` of a model in a file, or cut for so many ranks in a folder.
Words generate_json(int ranks, const std::string& model, const Words& more) {
  Words words = {"-n",   std::to_string(ranks), REGARD_PROGRAM, "generate", "-m",    model,
                 "--tp", std::to_string(ranks), "-p",           "the inn",  "--json"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST(RanksOfMpirun, OfACutModelGiveTheTextOfOneRank) {
  const ModelFolder folder({.has_end_token = false});
  const std::string cut = folder.file("cut");
  ASSERT_EQ(launch({{"-n", "1", REGARD_PROGRAM, "shard", "-m", folder.gguf, "--tp", "2", "-o", cut}}).exit_code, 0);
  const auto same = [&](const Words& more) {
    const auto alone = json_of(launch({generate_json(1, folder.gguf, more)}));
    const auto cut_in_two = json_of(launch({generate_json(2, cut, more)}));
    EXPECT_EQ(cut_in_two["tokens"], alone["tokens"]);
    EXPECT_EQ(cut_in_two["text"], alone["text"]);
  };
  same({"--deterministic", "--max-tokens", "50"});
  // Sums in another order may come to another token in the end.
  same({"--max-tokens", "4"});
}

// The first rank writes the file; the deterministic sum has the bits of one rank.
TEST(RanksOfMpirun, LogitsAndLayersAreThoseOfOneRank) {
  const ModelFolder folder;
  const auto written = [&](int ranks, const Words& more) {
    const std::string out = folder.file("out.safetensors");
    Words words = {"-n", std::to_string(ranks), REGARD_PROGRAM, "logits", "-m", folder.gguf};
    words.insert(words.end(), {"--tokens", "5,17,9,200,17", "--layers", "-o", out, "--deterministic"});
    words.insert(words.end(), more.begin(), more.end());
    const Finished result = launch({words});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const auto bytes = read_whole_file(out);
    std::filesystem::remove(out);
    return bytes;
  };
  const auto alone = written(1, {"--tp", "1"});
  EXPECT_EQ(written(2, {"--tp", "2"}), alone);
  EXPECT_EQ(written(2, {"--cp", "2"}), alone);
}

TEST(RanksOfMpirun, NeedAModelThatIsCutForAsMany) {
  const ModelFolder folder({.heads = 4, .kv_heads = 2});
  const std::string cut = folder.file("cut");
  ASSERT_EQ(launch({{"-n", "1", REGARD_PROGRAM, "shard", "-m", folder.gguf, "--tp", "2", "-o", cut}}).exit_code, 0);
  for (const int ranks : {1, 4})
    expect_refused(launch({generate_json(ranks, cut, {})}),
                   "checkpoint: " + cut + " was cut for 2 ranks, but there are " + std::to_string(ranks) +
                       "; start them with: mpirun -n 2 regard ... --tp 2");
  expect_refused(launch({generate_json(2, cut, {"--dp", "2"})}),
                 "checkpoint: " + cut + " was cut for --tp alone, expected no --cp and no --dp");
}

// Ranks go on from what others have saved: a file does not know how many they were.
TEST(RanksOfMpirun, ContinueASavedSequenceAsOneRankDoes) {
  const ModelFolder folder({.context = 256, .has_end_token = false});
  const std::string cache = folder.file("cache");
  const auto run = [&](int ranks, const Words& more) {
    Words words = {"-n",   std::to_string(ranks), REGARD_PROGRAM, "generate",       "-m", folder.gguf,
                   "--tp", std::to_string(ranks), "--json",       "--deterministic"};
    words.insert(words.end(), more.begin(), more.end());
    return json_of(launch({words}));
  };
  const auto whole = run(1, {"-p", "the inn", "-n", "60"});
  for (const auto& [saving, restoring] : std::initializer_list<std::pair<int, int>>{{2, 3}, {3, 1}, {1, 2}}) {
    const auto first = run(saving, {"-p", "the inn", "-n", "25", "--save-cache", cache});
    const auto rest = run(restoring, {"--restore-cache", cache, "-n", "35"});
    EXPECT_GT(rest["restored_tokens"], 0);
    auto tokens = first["tokens"];
    tokens.insert(tokens.end(), rest["tokens"].begin(), rest["tokens"].end());
    EXPECT_EQ(tokens, whole["tokens"]) << saving << " and " << restoring;
    std::filesystem::remove(cache);
  }
}

TEST(RanksOfMpirun, LetASmallerModelGuess) {
  const ModelFolder folder({.context = 256, .has_end_token = false});
  const ModelFolder small({.layers = 1, .context = 256, .has_end_token = false, .seed = 2});
  const Words plain = {"--deterministic", "--max-tokens", "40"};
  Words guessed = plain;
  guessed.insert(guessed.end(), {"--draft-model", small.gguf});
  const auto result = json_of(launch({generate_json(2, folder.gguf, guessed)}));
  EXPECT_EQ(result["tokens"], json_of(launch({generate_json(1, folder.gguf, plain)}))["tokens"]);
  EXPECT_GT(result["draft_tokens"], 0);
}

constexpr const char* kRequests =
    R"({"id": "a", "prompt": "the inn", "max_tokens": 40}
{"id": "b", "prompt": "the inn was", "max_tokens": 20, "temperature": 2, "seed": 3}
{"id": "wrong", "prompt": "the inn", "max_tokens": 0}
{"id": "c", "prompt": "a hen", "stop": ["e"]}
)";

// Runs a batch over ranks, and returns what it wrote.
std::string batch(const ModelFolder& folder, int ranks, const Words& more, std::string_view input = {}) {
  const std::string out = folder.file("results.jsonl");
  Words words = {"-n", std::to_string(ranks), REGARD_PROGRAM, "batch", "-m", folder.gguf, "-o", out};
  words.insert(words.end(), more.begin(), more.end());
  const Finished result = launch({words}, input);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("[4 requests: "));
  EXPECT_EQ(result.err.find("requests: "), result.err.rfind("requests: ")) << "one rank speaks";
  return read_whole_file(out);
}

TEST(RanksOfMpirun, ABatchIsThatOfOneRank) {
  const ModelFolder folder({.context = 256, .has_end_token = false});
  const std::string requests = folder.write("requests.jsonl", kRequests);
  const auto fresh = [&](int ranks, const Words& more) {
    std::filesystem::remove(folder.file("results.jsonl"));
    Words words = {"-i", requests, "--deterministic"};
    words.insert(words.end(), more.begin(), more.end());
    return batch(folder, ranks, words);
  };
  const std::string alone = fresh(1, {});
  EXPECT_EQ(fresh(2, {"--tp", "2"}), alone);
  EXPECT_EQ(fresh(4, {"--tp", "2", "--cp", "2", "--sp", "--max-batch", "2"}), alone);
  // What is there already is kept by ranks, too: the digests are the same.
  EXPECT_EQ(batch(folder, 3, {"--tp", "3", "-i", requests, "--deterministic", "--resume"}), alone);
}

// Only the first rank has standard input.
TEST(RanksOfMpirun, ABatchReadsStandardInput) {
  const ModelFolder folder({.context = 256, .has_end_token = false});
  EXPECT_THAT(batch(folder, 2, {"--tp", "2", "-i", "-"}, kRequests), HasSubstr("\"id\":\"c\""));
}

// Another number of ranks adds up in another order: its results are others.
TEST(RanksOfMpirun, ABatchIsResumedOnAsManyRanks) {
  const ModelFolder folder({.context = 256, .has_end_token = false});
  const std::string requests = folder.write("requests.jsonl", kRequests);
  const std::string first = batch(folder, 2, {"--tp", "2", "-i", requests});
  EXPECT_EQ(batch(folder, 2, {"--tp", "2", "-i", requests, "--resume"}), first);
  expect_refused(launch({{"-n", "1", REGARD_PROGRAM, "batch", "-m", folder.gguf, "-i", requests, "-o",
                          folder.file("results.jsonl"), "--resume"}}),
                 "the result that is there for id \"a\" was made by another model or with other settings");
}

TEST(RanksOfMpirun, ThatDrawDifferentTokensInABatchEnd) {
  const TinyLlama model{.context = 1024, .has_end_token = false};
  const ModelFolder folder(model);
  const std::string other = with_another_head(folder, model);
  const std::string requests = folder.write("requests.jsonl", kRequests);
  const auto words = [&](const std::string& path) {
    return Words{"-n", "1", REGARD_PROGRAM, "batch", "-m", path, "--tp", "2", "-i", requests, "-o", folder.file("out")};
  };
  const Finished result = launch({words(folder.gguf), words(other)});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("regard: ranks disagree: a token that is drawn is "));
}

TEST(RanksOfMpirun, ThatDivideSequencesRunNoBatch) {
  const ModelFolder folder;
  const std::string requests = folder.write("requests.jsonl", kRequests);
  expect_refused(launch({{"-n", "2", REGARD_PROGRAM, "batch", "-m", folder.gguf, "--tp", "2", "--dp", "2", "-i",
                          requests, "-o", folder.file("out")}}),
                 "--dp 2 is given, but each rank of a batch has all sequences; give --tp");
}

}  // namespace
}  // namespace regard::test
