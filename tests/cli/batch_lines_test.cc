// Which lines are requests. Some that are none are refused by their size, before they take minutes.
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/batch_folder.h"

namespace regard::test {
namespace {

void expect_refused(const std::string& lines, std::string_view part) {
  const ModelFolder folder;
  const std::string results = folder.file("results.jsonl");
  const Finished result =
      run_command({"batch", "-m", folder.gguf, "-i", folder.write("requests.jsonl", lines), "-o", results});
  EXPECT_EQ(result.exit_code, 2) << result.signal;
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err.substr(0, 300);
  EXPECT_LT(result.err.size(), 400U);
  EXPECT_FALSE(std::filesystem::exists(results));
}

std::string request_of(const std::string& prompt) { return R"({"id":"a","prompt":)" + prompt + "}\n"; }

TEST(BatchLines, OfMoreThanSixteenMegabytesAreRefused) {
  const std::string small = request_of("\"the\"");
  expect_refused(small + "\n" + request_of('"' + std::string(20'000'000, 'q') + '"'),
                 "line 3 has 20000022 bytes, expected at most 16777216");
}

TEST(BatchLines, NestedTensOfMillionsDeepAreRefusedWithoutBeingParsed) {
  const int depth = 20'000'000;
  expect_refused(request_of(std::string(depth, '[') + std::string(depth, ']')), "line 1 has 40000020 bytes");
}

TEST(BatchCommand, ARequestThatCanNotRunIsAnErrorOfItsOwn) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {R"("prompt":"")", "0 tokens"},
      {R"("max_tokens":3)", "prompt is missing"},
      {R"("prompt":7)", "prompt is 7"},
      {R"("prompt":null)", "prompt is null"},
      {R"("prompt":")" + std::string(1025, 'z') + '"', "the prompt has 1025 tokens, expected 1 to 1024"},
      {R"("prompt":"a","max_tokens":0)", "max_tokens is 0"},
      {R"("prompt":"a","max_tokens":-1)", "max_tokens is -1"},
      {R"("prompt":"a","max_tokens":1.5)", "max_tokens is 1.5"},
      {R"("prompt":"a","max_tokens":99999999999999999999)", "max_tokens is"},
      {R"("prompt":"a","max_tokens":"3")", "max_tokens is"},
      {R"("prompt":"a","temperature":-1)", "temperature is -1"},
      {R"("prompt":"a","temperature":1e300)", "temperature is"},
      {R"("prompt":"a","temperature":"hot")", "temperature is"},
      {R"("prompt":"a","top_p":0)", "top_p is 0"},
      {R"("prompt":"a","top_k":2147483648)", "top_k is 2147483648"},
      {R"("prompt":"a","seed":-1)", "seed is -1"},
      {R"("prompt":"a","salt":[])", "salt is an array"}};
  std::string lines;
  for (size_t i = 0; i < bad.size(); ++i)
    lines += R"({"id":")" + std::to_string(i) + "\"," + bad[i].first + "}\n" +
             request("good " + std::to_string(i), "a", {{"max_tokens", 2}});
  BatchFolder folder(lines);
  const auto results = folder.results();
  ASSERT_EQ(results.size(), 2 * bad.size());
  for (size_t i = 0; i < bad.size(); ++i) {
    const Json& result = results[2 * i];
    EXPECT_EQ(result["id"], std::to_string(i));
    EXPECT_EQ(result["finish_reason"], "error") << bad[i].first;
    EXPECT_NE(result["error"].get<std::string>().find(bad[i].second), std::string::npos) << result.dump();
    EXPECT_TRUE(result["tokens"].empty());
    EXPECT_EQ(results[2 * i + 1]["finish_reason"], "length");
  }
  EXPECT_NE(folder.finished.err.find("17 of them with an error"), std::string::npos) << folder.finished.err;
}

TEST(BatchCommand, AnInputThatIsNoListOfRequestsIsRefusedBeforeAnythingIsWritten) {
  const std::string good = request("a", "the", {{"max_tokens", 1}});
  const std::vector<std::pair<std::string, std::string>> bad = {
      {good + "\nthe inn\n", "line 3: no JSON object: the inn"},
      {good + "[1]", "line 2: no JSON object"},
      {good + "{\"id\":\"b\"", "line 2: no JSON object"},
      {good + "{\"id\":\"b\",\"prompt\":\"\xFF\"}", "line 2: no JSON object"},
      {good + R"({"prompt":"b"})", "line 2: id is missing, expected a text"},
      {good + R"({"id":5,"prompt":"b"})", "line 2: id is 5"},
      {good + good, "line 2: id \"a\" comes twice"},
      {good + R"({"id":"b","prompt":"b","maxtokens":5})", "line 2: no request has a key \"maxtokens\""}};
  for (const auto& [lines, part] : bad) {
    // The model would be refused too, but later.
    const BatchFolder folder(lines);
    for (const std::string& model : {folder.gguf, folder.file("none.gguf")}) {
      (void)folder.write("results.jsonl", "old");
      std::vector<std::string> command = folder.command();
      command[2] = model;
      const Finished result = run_command(command);
      EXPECT_EQ(result.exit_code, 2) << lines;
      EXPECT_TRUE(result.err.starts_with("regard: ")) << result.err;
      EXPECT_EQ(std::ranges::count(result.err, '\n'), 1) << result.err;
      EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
      EXPECT_EQ(read_whole_file(folder.output), "old");
    }
  }
}

TEST(BatchCommand, NullIsNoValueAndWholeNumbersMayHaveAPoint) {
  const std::string bare = request("a", "the inn");
  BatchFolder expected(request("a", "the inn", {{"max_tokens", 7}, {"seed", 3}, {"temperature", 1}}));
  BatchFolder folder(
      R"({"id":"a","prompt":"the inn","max_tokens":7.0,"seed":3.0,"temperature":1,"top_k":null,"top_p":null,)"
      R"("salt":null,"stop":null,"messages":null})");
  EXPECT_EQ(folder.run(), expected.run());
  BatchFolder defaults(bare);
  BatchFolder nulls(R"({"id":"a","prompt":"the inn","max_tokens":null,"seed":null,"temperature":null})");
  EXPECT_EQ(nulls.run(), defaults.run());
}

TEST(BatchCommand, RequestsMayComeFromStandardInput) {
  const std::string lines = request("a", "the inn", {{"max_tokens", 3}});
  BatchFolder folder(lines);
  const std::string expected = folder.run();
  std::filesystem::remove(folder.output);
  std::vector<std::string> command = folder.command();
  command[4] = "-";
  EXPECT_EQ(run_command(command, lines).exit_code, 0);
  EXPECT_EQ(read_whole_file(folder.output), expected);
  const Finished bad = run_command(command, "x\n");
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_NE(bad.err.find("standard input line 1: no JSON object: x"), std::string::npos) << bad.err;
}

TEST(BatchCommand, ATextBehindAJsonObjectIsRefused) {
  const std::string good = R"({"id":"a","prompt":"the"})";
  for (const std::string& end : {std::string(1, '\0'), std::string(1, '\0') + R"({"id":"b","prompt":"the"})",
                                 std::string(" x"), std::string("{}")}) {
    const BatchFolder folder(good + end + "\n");
    const Finished finished = run_command(folder.command());
    EXPECT_EQ(finished.exit_code, 2);
    EXPECT_NE(finished.err.find("line 1: no JSON object"), std::string::npos) << finished.err;
  }
}

}  // namespace
}  // namespace regard::test
