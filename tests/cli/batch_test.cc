// Results, and files that hold some already.
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "cli/batch_folder.h"
#include "regard/tokenizer.h"
#include "support/random.h"

namespace regard::test {
namespace {

TEST(BatchCommand, ResultsAreThoseOfGenerateInTheOrderOfTheRequests) {
  BatchFolder folder(request("long", "the inn", {{"max_tokens", 30}}) + "\n  \r\n" +
                     request("", "a hen \xC3\xA9\n", {{"max_tokens", 5}, {"temperature", 1.5}, {"seed", 7}}) +
                     request("drawn", "the inn", {{"temperature", 2}, {"top_k", 40}, {"top_p", 0.9}, {"salt", 3}}));
  const auto results = folder.results();
  ASSERT_EQ(results.size(), 3U);
  const std::vector<std::vector<std::string>> options = {
      {"-p", "the inn", "-n", "30"},
      {"-p", "a hen \xC3\xA9\n", "-n", "5", "--temperature", "1.5", "--seed", "7"},
      {"-p", "the inn", "--temperature", "2", "--top-k", "40", "--top-p", "0.9"}};
  const std::vector<std::string> ids = {"long", "", "drawn"};
  for (size_t i = 0; i < 3; ++i) {
    std::vector<std::string> words = {"generate", "-m", folder.gguf, "--json", "--threads", "1"};
    words.insert(words.end(), options[i].begin(), options[i].end());
    const Json alone = Json::parse(run_command(words).out);
    const Json expected = {{"id", ids[i]},
                           {"prompt_tokens", alone["prompt_tokens"]},
                           {"tokens", alone["tokens"]},
                           {"text", alone["text"]},
                           {"finish_reason", "length"},
                           {"digest", results[i]["digest"]}};
    EXPECT_EQ(results[i].dump(), expected.dump());
    EXPECT_EQ(results[i]["digest"].get<std::string>().size(), 16U);
  }
  EXPECT_NE(folder.finished.err.find("[3 requests: 3 done, 0 of them with an error, 0 kept"), std::string::npos)
      << folder.finished.err;
}

TEST(BatchCommand, NeitherMemoryNorBatchNorThreadsChangeTheFile) {
  std::string lines;
  for (int i = 0; i < 12; ++i)
    lines += request(std::to_string(i), std::string(static_cast<size_t>(20 + 9 * i), 'z') + std::to_string(i),
                     {{"max_tokens", 60 + i}, {"temperature", i % 3}, {"seed", i}});
  BatchFolder folder(lines);
  const std::string results = folder.run();
  EXPECT_NE(folder.finished.err.find(" 0 preemptions"), std::string::npos) << folder.finished.err;
  EXPECT_EQ(folder.run({"--max-batch", "1", "--threads", "2"}), results);
  // A page of both layers takes 12 KiB; the longest text needs 7 of the 12.
  EXPECT_EQ(folder.run({"--kv-memory", "144K"}), results);
  EXPECT_EQ(folder.finished.err.find(" 0 preemptions"), std::string::npos) << folder.finished.err;
  EXPECT_NE(folder.finished.err.find("of 12 pages"), std::string::npos) << folder.finished.err;
}

TEST(BatchCommand, NoRequestsAreAnEmptyFile) {
  for (const char* lines : {"", "\n\n"}) {
    BatchFolder folder(lines);
    EXPECT_EQ(folder.run(), "");
    EXPECT_TRUE(std::filesystem::exists(folder.output));
  }
}

TEST(BatchCommand, WrongOptionsAndFilesAreRefused) {
  const BatchFolder folder(request("a", "the"));
  const auto refused = [&](const std::vector<std::string>& options, const std::string& part) {
    std::vector<std::string> command = folder.command();
    const auto given = std::ranges::find(command, options[0]);
    if (given == command.end())
      command.insert(command.end(), options.begin(), options.end());
    else
      given[1] = options[1];
    const Finished result = run_command(command);
    EXPECT_EQ(result.exit_code, 2) << part;
    EXPECT_EQ(std::ranges::count(result.err, '\n'), 1) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  };
  for (const char* count : {"0", "-1", "4097", "many"}) refused({"--max-batch", count}, "--max-batch");
  for (const char* bytes : {"0", "-1", "4X", "", "99999999999999999999"})
    refused({"--kv-memory", bytes}, "--kv-memory");
  refused({"--kv-memory", "1K"}, "the cache's memory is 1024 bytes");
  refused({"-i", folder.file("none")}, "none can't be opened");
  refused({"-i", folder.path()}, "can't be read");
  refused({"-o", folder.path()}, "can't be written");
  refused({"-o", folder.file("none/results")}, "can't be written");
  refused({"-o", folder.input}, "both the input and the output");
  refused({"-i", folder.write("deep", R"({"id": )" + std::string(200'000, '[') + std::string(200'000, ']') + "}")},
          "id is an array, expected a text");
  EXPECT_EQ(read_whole_file(folder.input), request("a", "the"));
}

TEST(BatchCommand, WithoutResumeAFileThatIsNotEmptyIsRefused) {
  const BatchFolder folder(request("a", "the", {{"max_tokens", 2}}));
  (void)folder.write("results.jsonl", "old\n");
  const Finished finished = run_command(folder.command());
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_NE(finished.err.find("has 4 bytes already; give --resume"), std::string::npos) << finished.err;
  EXPECT_EQ(read_whole_file(folder.output), "old\n");
  (void)folder.write("results.jsonl", "");
  EXPECT_EQ(run_command(folder.command()).exit_code, 0);
  EXPECT_EQ(Json::parse(read_whole_file(folder.output))["id"], "a");
}

TEST(BatchCommand, TheModelsFilesAreNeverTheOutput) {
  namespace fs = std::filesystem;
  const BatchFolder folder(request("a", "the", {{"max_tokens", 2}}));
  const std::string model = read_whole_file(folder.gguf);
  fs::create_symlink(folder.gguf, folder.file("symbolic"));
  fs::create_hard_link(folder.gguf, folder.file("hard"));
  const TempFolder hugging_face;
  kEndless.write_hugging_face(hugging_face.path(), 2);
  const auto refused = [&](std::vector<std::string> command) {
    const Finished finished = run_command(command);
    EXPECT_EQ(finished.exit_code, 2) << command.back();
    EXPECT_NE(finished.err.find("a file that is read: "), std::string::npos) << finished.err;
  };
  for (const std::string& name : {folder.gguf, folder.file("symbolic"), folder.file("hard")}) {
    std::vector<std::string> command = folder.command();
    command[6] = name;
    refused(command);
    command.emplace_back("--resume");
    refused(command);
    refused({"generate", "-m", folder.gguf, "-p", "the", "-n", "1", "--save-cache", name});
    refused({"logits", "-m", folder.gguf, "--tokens", "5", "-o", name});
    EXPECT_EQ(read_whole_file(folder.gguf), model);
  }
  for (const auto& file : fs::directory_iterator(hugging_face.path())) {
    const std::string bytes = read_whole_file(file.path());
    refused({"batch", "-m", hugging_face.path(), "-i", folder.input, "--resume", "-o", file.path()});
    EXPECT_EQ(read_whole_file(file.path()), bytes) << file.path();
  }
}

// The lock of the results file passes from each version of the file to the next.
TEST(BatchCommand, TwoBatchesNeverWriteToOneFile) {
  const BatchFolder folder(request("a", "the", {{"max_tokens", 2}}));
  const BatchFolder busy(long_work());
  ChildProcess command(busy.command({"--max-batch", "3"}));
  for (size_t lines = 0; lines < 2; lines = written_lines(busy).size()) {
    wait_for_lines(busy, lines);
    std::vector<std::string> other = folder.command({"--resume"});
    other[2] = busy.gguf;
    other[6] = busy.output;
    const Finished finished = run_command(other);
    EXPECT_EQ(finished.exit_code, 2);
    EXPECT_NE(finished.err.find("another batch writes to it"), std::string::npos) << finished.err;
  }
  command.send_signal(SIGKILL);
  (void)command.finish();
  // The lock ends with its owner.
  const Finished after = run_command(busy.command());
  EXPECT_NE(after.err.find("bytes already; give --resume"), std::string::npos) << after.err;
}

TEST(BatchCommand, MessagesGoThroughTheChatTemplateAsInGenerate) {
  const TempFolder folder;
  kEndless.write_hugging_face(folder.path());
  folder.write("chat_template.jinja", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]");
  const std::string user = R"({"role":"user","content":"the inn"})";
  const std::string input = folder.write(
      "in.jsonl", R"({"id":"a","messages":[{"role":"system","content":"a hen"},)" + user + R"(],"max_tokens":9})" +
                      "\n" + R"({"id":"b","messages":[]})" + "\n" + R"({"id":"c","prompt":"x","messages":[)" + user +
                      "]}\n" + R"({"id":"d","messages":[{"role":"user"}]})" + "\n" + R"({"id":"e","messages":"x"})" +
                      "\n");
  const std::string output = folder.file("out.jsonl");
  const Finished finished = run_command({"batch", "-m", folder.path(), "-i", input, "-o", output});
  EXPECT_EQ(finished.exit_code, 0) << finished.err;
  const auto lines = lines_of(read_whole_file(output));
  ASSERT_EQ(lines.size(), 5U);
  const Json alone = Json::parse(run_command({"generate", "-m", folder.path(), "--chat", "--system", "a hen", "-p",
                                              "the inn", "-n", "9", "--json"})
                                     .out);
  const Json result = Json::parse(lines[0]);
  EXPECT_EQ(result["prompt_tokens"], alone["prompt_tokens"]);
  EXPECT_EQ(result["tokens"], alone["tokens"]);
  const char* errors[] = {"messages is empty", "prompt and messages are both given", "messages hold an object with",
                          "messages is \\\"x\\\", expected a list"};
  for (size_t i = 0; i < 4; ++i) EXPECT_NE(lines[i + 1].find(errors[i]), std::string::npos) << lines[i + 1];
}

TEST(BatchCommand, DeterministicGivesTheTokensOfGenerateWithTheSameFlag) {
  // All rows of the head differ in last bits only, so that the order of sums, which is another one with the flag,
  // decides which logit is the largest.
  GgufBuilder gguf = kEndless.gguf();
  auto& head = gguf.tensor("output.weight");
  const size_t row_bytes = head.data.size() / head.sizes[1];
  for (size_t i = row_bytes; i < head.data.size(); ++i) head.data[i] = head.data[i - row_bytes];
  Random random(3);
  for (size_t i = 0; i < head.data.size(); i += sizeof(float))
    head.data[i] = static_cast<char>(head.data[i] ^ static_cast<char>(random.integer(0, 1)));
  const TempFolder folder;
  const std::string model = folder.write("model.gguf", gguf.build());
  const std::string requests = folder.write("in.jsonl", request("a", "the inn", {{"max_tokens", 40}}));
  const std::string results = folder.file("out.jsonl");
  const Finished finished = run_command({"batch", "-m", model, "-i", requests, "-o", results, "--deterministic"});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  const Json tokens = Json::parse(read_whole_file(results))["tokens"];
  const std::vector<std::string> generate = {"generate", "-m", model, "-p", "the inn", "-n", "40", "--json"};
  std::vector<std::string> deterministic = generate;
  deterministic.emplace_back("--deterministic");
  EXPECT_EQ(tokens, Json::parse(run_command(deterministic).out)["tokens"]);
  EXPECT_NE(tokens, Json::parse(run_command(generate).out)["tokens"]) << "the flag can't be seen in this text";
}

TEST(BatchCommand, ResumeKeepsWhatIsThereByteForByteAndRunsTheRest) {
  BatchFolder folder(request("a", "the", {{"max_tokens", 2}}) + request("b", "") +
                     request("c", "inn", {{"max_tokens", 3}}));
  const std::string all = folder.run();
  EXPECT_EQ(folder.run({"--resume"}), all);
  EXPECT_NE(folder.finished.err.find("3 requests: 1 done, 1 of them with an error, 2 kept"), std::string::npos);
  std::filesystem::remove(folder.output);
  EXPECT_EQ(folder.run({"--resume"}), all);
  EXPECT_NE(folder.finished.err.find(" 0 kept"), std::string::npos);
  // With other spaces, and without the rest.
  const std::string kept = "{ " + lines_of(all)[0].substr(1) + " \n";
  (void)folder.write("results.jsonl", kept);
  const std::string rest = all.substr(all.find('\n') + 1);
  EXPECT_EQ(folder.run({"--resume"}), kept + rest);
  EXPECT_NE(folder.finished.err.find("2 done, 1 of them with an error, 1 kept"), std::string::npos)
      << folder.finished.err;
}

// Also where a line before it is missing; what failed runs again.
TEST(BatchCommand, ResumeRefusesResultsOfAnotherPrompt) {
  BatchFolder folder(request("a", "the", {{"max_tokens", 2}}) + request("b", "inn", {{"max_tokens", 2}}));
  const std::string all = folder.run();
  (void)folder.write("requests.jsonl", request("a", "the", {{"max_tokens", 2}}) + request("b", "hen"));
  const Finished finished = run_command(folder.command({"--resume"}));
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_NE(finished.err.find("for id \"b\" belongs to another prompt or model"), std::string::npos) << finished.err;
  EXPECT_EQ(read_whole_file(folder.output), all);
}

TEST(BatchCommand, ResumeRefusesResultsOfOtherSettingsOrModelsAndForgedOnes) {
  const Json settings = {{"max_tokens", 3}, {"temperature", 0.5}, {"top_k", 9},
                         {"top_p", 0.9},    {"seed", 4},          {"salt", 1}};
  BatchFolder folder(request("a", "the", settings));
  const std::string line = folder.run();
  const auto resumed = [&](const std::vector<std::string>& command) { return run_command(command); };
  const auto expect_refused = [&](const std::vector<std::string>& command, const std::string& what) {
    const Finished finished = resumed(command);
    EXPECT_EQ(finished.exit_code, 2) << what;
    EXPECT_NE(finished.err.find("id \"a\" was made by another model or with other settings, or was changed"),
              std::string::npos)
        << what << finished.err;
  };
  EXPECT_EQ(resumed(folder.command({"--resume"})).exit_code, 0);
  const Json others = {{"max_tokens", 4}, {"temperature", 0.6}, {"top_k", 8},
                       {"top_p", 0.8},    {"seed", 5},          {"stop", "x"}};
  for (const auto& [key, value] : others.items()) {
    Json changed = settings;
    changed[key] = value;
    (void)folder.write("requests.jsonl", request("a", "the", changed));
    expect_refused(folder.command({"--resume"}), key);
  }
  // No result depends on the salt.
  Json salted = settings;
  salted["salt"] = 2;
  (void)folder.write("requests.jsonl", request("a", "the", salted));
  EXPECT_EQ(resumed(folder.command({"--resume"})).exit_code, 0);
  expect_refused(folder.command({"--resume", "--kv-dtype", "bf16"}), "--kv-dtype");
  expect_refused(folder.command({"--resume", "--deterministic"}), "--deterministic");
  const ModelFolder other(TinyLlama{.context = 1024, .has_end_token = false, .seed = 2});
  std::vector<std::string> command = folder.command({"--resume"});
  command[2] = other.gguf;
  expect_refused(command, "model");

  const Json result = Json::parse(line);
  const auto forged = [&](const char* key, const Json& value) {
    Json changed = result;
    if (value.is_null())
      changed.erase(key);
    else
      changed[key] = value;
    (void)folder.write("results.jsonl", changed.dump() + "\n");
    expect_refused(folder.command({"--resume"}), key);
  };
  forged("tokens", {5});
  forged("text", "five");
  forged("finish_reason", "stop");
  forged("digest", "0123456789abcdef");
  forged("digest", nullptr);
}

TEST(BatchCommand, ResumeKeepsLinesBehindAGapAndRunsErrorsAgain) {
  BatchFolder folder(request("a", "the", {{"max_tokens", 2}}) + request("b", "inn", {{"max_tokens", 2}}));
  const std::string kept = "{ " + lines_of(folder.run())[1].substr(1) + "\n";
  (void)folder.write("results.jsonl",
                     R"({"id":"a","prompt_tokens":[],"tokens":[],"text":"","finish_reason":"error","error":"e"})"
                     "\n" +
                         kept);
  const auto lines = lines_of(folder.run({"--resume"}));
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(Json::parse(lines[0])["finish_reason"], "length");
  EXPECT_EQ(lines[1] + "\n", kept);
}

TEST(BatchCommand, ResultsGoWhereALinkPointsAndReplaceNothingButFiles) {
  namespace fs = std::filesystem;
  BatchFolder folder(request("a", "the", {{"max_tokens", 2}}));
  const std::string target = folder.write("target.jsonl", "");
  fs::permissions(target, fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink(target, folder.output);
  EXPECT_EQ(run_command(folder.command()).exit_code, 0);
  const std::string all = read_whole_file(target);
  EXPECT_EQ(Json::parse(all)["id"], "a");
  EXPECT_TRUE(fs::is_symlink(folder.output));
  EXPECT_EQ(fs::status(target).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  fs::remove(folder.output);
  ASSERT_EQ(mkfifo(folder.output.c_str(), 0600), 0);
  const Finished finished = run_command(folder.command());
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_NE(finished.err.find("no file that could be replaced"), std::string::npos) << finished.err;
  EXPECT_TRUE(fs::is_fifo(folder.output));
}

TEST(BatchCommand, ResumeRefusesWhatIsNoResultOfTheseRequests) {
  const BatchFolder folder(request("a", "the") + request("b", "the"));
  const auto result = [](const std::string& id, const std::string& end) {
    return R"({"id":")" + id + R"(","prompt_tokens":[1],"tokens":[2],"text":"t",)" + end + "}\n";
  };
  const std::string good = result("a", R"("finish_reason":"length")");
  const std::vector<std::pair<std::string, std::string>> bad = {
      {good + "{\"id\":\"b\",\"prom", "line 2: no JSON object"},
      {good + R"({"id":"b"})", "line 2: no result of a batch"},
      {good + result("b", R"("finish_reason":"tired")"), "line 2: no result of a batch"},
      {good + result("b", R"("finish_reason":"error")"), "line 2: no result of a batch"},
      {good + result("b", R"("finish_reason":"stop","error":"e")"), "line 2: no result of a batch"},
      {good + result("b", R"("finish_reason":"stop","tokens":["x"])"), "line 2: no result of a batch"},
      {good + result("c", R"("finish_reason":"stop")"), "line 2: id \"c\" is not among the requests"},
      {good + good, "line 2: id \"a\" comes twice"}};
  for (const auto& [lines, part] : bad) {
    (void)folder.write("results.jsonl", lines);
    const Finished finished = run_command(folder.command({"--resume"}));
    EXPECT_EQ(finished.exit_code, 2) << lines;
    EXPECT_NE(finished.err.find(part), std::string::npos) << finished.err;
    EXPECT_EQ(read_whole_file(folder.output), lines);
  }
}

// Heads are often padded: such rows have no token, and here the largest logits.
TEST(BatchCommand, IdsThatTheTokenizerDoesNotHaveAreNeverDrawn) {
  GgufBuilder gguf = kEndless.gguf();
  const size_t rows = tiny_vocabulary().size();
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    auto& tensor = gguf.tensor(name);
    const size_t row_bytes = tensor.data.size() / rows;
    // Copies of two rows, many times as large and of both signs: one of them has the largest logit.
    std::string row = tensor.data.substr(5 * row_bytes, row_bytes);
    for (size_t i = 0; i < row.size(); i += sizeof(float)) {
      float value = 0;
      std::memcpy(&value, &row[i], sizeof value);
      value *= 100;
      std::memcpy(&row[i], &value, sizeof value);
    }
    std::string opposite = row;
    for (size_t i = sizeof(float) - 1; i < opposite.size(); i += sizeof(float))
      opposite[i] = static_cast<char>(opposite[i] ^ '\x80');
    tensor.data += row + opposite;
    ASSERT_EQ(tensor.sizes[1], rows);
    tensor.sizes[1] += 2;
  }
  const TempFolder folder;
  const std::string model = folder.write("model.gguf", gguf.build());
  std::string lines;
  for (const int temperature : {0, 2})
    lines += request(std::to_string(temperature), "the inn", {{"max_tokens", 40}, {"temperature", temperature}});
  const std::string output = folder.file("out");
  const Finished finished = run_command({"batch", "-m", model, "-i", folder.write("in", lines), "-o", output});
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  for (const std::string& line : lines_of(read_whole_file(output))) {
    const Json result = Json::parse(line);
    EXPECT_EQ(result["tokens"].size(), 40U);
    for (const size_t token : result["tokens"]) EXPECT_LT(token, rows);
    const Finished alone = run_command({"generate", "-m", model, "-p", "the inn", "-n", "40", "--json", "--temperature",
                                        result["id"].get<std::string>()});
    ASSERT_EQ(alone.exit_code, 0) << alone.err;
    const Json text = Json::parse(alone.out);
    EXPECT_EQ(text["tokens"], result["tokens"]);
    // Nor where ids are given, and printed.
    const std::string prompt = fmt::format("{}", fmt::join(text["prompt_tokens"].get<std::vector<int>>(), ","));
    const std::vector<std::string> words = {"generate", "-m", model,    "--tokens",      prompt,
                                            "-n",       "40", "--json", "--temperature", result["id"]};
    const Finished ids = run_command(words);
    ASSERT_EQ(ids.exit_code, 0) << ids.err;
    EXPECT_EQ(Json::parse(ids.out)["tokens"], result["tokens"]);
  }
}

}  // namespace
}  // namespace regard::test
