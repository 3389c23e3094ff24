#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "support/property.h"
#include "support/random.h"
#include "support/sanitized.h"

namespace regard::test {
namespace {

using Json = nlohmann::ordered_json;

const TinyLlama kEndless{.context = 1024, .has_end_token = false};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

// A folder with a model, requests and results.
struct BatchFolder : ModelFolder {
  explicit BatchFolder(const std::string& requests, const TinyLlama& model = kEndless)
      : ModelFolder(model), input(write("requests.jsonl", requests)), output(file("results.jsonl")) {}

  [[nodiscard]] std::vector<std::string> command(std::vector<std::string> options = {}) const {
    std::vector<std::string> words = {"batch", "-m", gguf, "-i", input, "-o", output};
    if (std::ranges::find(options, "--threads") == options.end()) options.insert(options.end(), {"--threads", "1"});
    words.insert(words.end(), options.begin(), options.end());
    return words;
  }
  // Runs to the end and returns the results.
  std::string run(const std::vector<std::string>& options = {}) {
    finished = run_command(command(options));
    EXPECT_EQ(finished.exit_code, 0) << finished.err;
    EXPECT_EQ(finished.out, "");
    return read_whole_file(output);
  }
  [[nodiscard]] std::vector<Json> results() {
    std::vector<Json> all;
    for (const std::string& line : lines_of(run())) all.push_back(Json::parse(line));
    return all;
  }

  const std::string input;
  const std::string output;
  Finished finished;
};

std::string request(const std::string& id, const std::string& prompt, const Json& more = Json::object()) {
  Json json = {{"id", id}, {"prompt", prompt}};
  json.update(more);
  return json.dump() + "\n";
}

// Requests that keep one thread busy for some seconds.
std::string long_work() {
  constexpr int kRequests = kSanitized ? 40 : 120;
  std::string lines;
  for (int i = 0; i < kRequests; ++i)
    lines += request("request " + std::to_string(i), "the inn and hen " + std::to_string(i * i),
                     {{"max_tokens", 900 + i % 50}, {"temperature", 1 + i % 3}, {"seed", i}});
  return lines;
}

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
                           {"finish_reason", "length"}};
    EXPECT_EQ(results[i].dump(), expected.dump());
  }
  EXPECT_NE(folder.finished.err.find("[3 requests: 3 done, 0 of them with an error, 0 kept"), std::string::npos)
      << folder.finished.err;
}

TEST(BatchCommand, AnEndTokenIsAReasonToStop) {
  GgufBuilder gguf = TinyLlama().gguf();
  gguf.tensor("output.weight").data.assign(gguf.tensor("output.weight").data.size(), '\0');
  const TempFolder folder;
  const std::string out = folder.file("out");
  const Finished finished = run_command({"batch", "-m", folder.write("model.gguf", gguf.build()), "-i",
                                         folder.write("in", request("a", "the")), "-o", out});
  EXPECT_EQ(finished.exit_code, 0) << finished.err;
  const Json result = Json::parse(read_whole_file(out));
  EXPECT_EQ(result["tokens"], Json::array({0}));
  EXPECT_EQ(result["text"], "");
  EXPECT_EQ(result["finish_reason"], "stop");
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

TEST(BatchCommand, WithoutResumeTheOldFileIsReplaced) {
  BatchFolder folder(request("a", "the", {{"max_tokens", 2}}));
  (void)folder.write("results.jsonl", "old\n");
  EXPECT_EQ(Json::parse(folder.run())["id"], "a");
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
  // Spaces, and another text than this model gives.
  const std::string prompt = Json::parse(lines_of(all)[0])["prompt_tokens"].dump();
  const std::string kept =
      R"({ "id":"a","prompt_tokens":)" + prompt + R"(,"tokens":[ 5 ], "text":"five","finish_reason":"stop"})" + "\n";
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

TEST(BatchCommand, ResumeKeepsLinesBehindAGapAndRunsErrorsAgain) {
  BatchFolder folder(request("a", "the", {{"max_tokens", 2}}) + request("b", "inn", {{"max_tokens", 2}}));
  const std::string prompt = Json::parse(lines_of(folder.run())[1])["prompt_tokens"].dump();
  const std::string kept =
      R"({"id":"b","prompt_tokens":)" + prompt + R"(,"tokens":[5],"text":"five","finish_reason":"stop"})" + "\n";
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
  const std::string target = folder.write("target.jsonl", "old\n");
  fs::permissions(target, fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink(target, folder.output);
  const std::string all = folder.run();
  EXPECT_TRUE(fs::is_symlink(folder.output));
  EXPECT_EQ(read_whole_file(target), all);
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

// The whole lines that the results file has by now; fails the test if there is a part of one.
std::vector<std::string> written_lines(const BatchFolder& folder) {
  if (!std::filesystem::exists(folder.output)) return {};
  const std::string text = read_whole_file(folder.output);
  EXPECT_TRUE(text.empty() || text.back() == '\n');
  return lines_of(text);
}

// Waits until the results file has more lines than before.
void wait_for_lines(const BatchFolder& folder, size_t before) {
  using namespace std::chrono_literals;
  for (int i = 0; i < 18000 && written_lines(folder).size() <= before; ++i) std::this_thread::sleep_for(10ms);
}

// Some of all lines, in their order.
void expect_some_of(const std::vector<std::string>& lines, const std::vector<std::string>& all) {
  auto next = all.begin();
  for (const std::string& line : lines) {
    next = std::find(next, all.end(), line);
    ASSERT_NE(next, all.end()) << line;
    ++next;
  }
}

TEST(BatchCommand, KilledAtAnyTimeItLeavesWholeLinesAndResumesToTheSameFile) {
  const std::string work = long_work();
  BatchFolder uninterrupted(work);
  const std::string all = uninterrupted.run();
  BatchFolder folder(work);
  Random random(static_cast<uint64_t>(environment("REGARD_PROPERTY_SEED", 1)));
  size_t lines = 0;
  for (int kill = 0; kill < 2; ++kill) {
    ChildProcess command(folder.command({"--max-batch", "3", "--resume"}));
    wait_for_lines(folder, lines);
    std::this_thread::sleep_for(std::chrono::milliseconds(random.integer(0, 200)));
    command.send_signal(SIGKILL);
    // A fast machine may be done before the second time.
    EXPECT_TRUE(command.finish().signal == SIGKILL || kill > 0);
    const auto now = written_lines(folder);
    EXPECT_GT(now.size(), lines);
    expect_some_of(now, lines_of(all));
    lines = now.size();
  }
  EXPECT_EQ(folder.run({"--resume"}), all);
  EXPECT_NE(folder.finished.err.find(std::to_string(lines_of(all).size() - lines) + " done, 0 of them with an error, " +
                                     std::to_string(lines) + " kept"),
            std::string::npos)
      << folder.finished.err;
}

// What a command that is interrupted so long after its first lines has written before and after the interruption.
struct Interrupted {
  size_t before;
  size_t after;
};
Interrupted interrupt_after(BatchFolder& folder, std::chrono::milliseconds wait) {
  ChildProcess command(folder.command({"--max-batch", "3"}));
  wait_for_lines(folder, 0);
  const size_t before = written_lines(folder).size();
  std::this_thread::sleep_for(wait);
  command.send_signal(SIGINT);
  const Finished finished = command.finish();
  EXPECT_EQ(finished.exit_code, 130) << "signal " << finished.signal;
  EXPECT_NE(finished.err.find(" requests: "), std::string::npos) << finished.err;
  EXPECT_EQ(std::ranges::count(finished.err, '\n'), 2) << finished.err;
  return {before, written_lines(folder).size()};
}

TEST(BatchCommand, CtrlCWritesWhatIsFinishedAndExitsWith130) {
  BatchFolder folder(long_work());
  // Long enough for more to be finished, which depends on the machine, and too short for it to be written as it comes.
  Interrupted lines = interrupt_after(folder, std::chrono::milliseconds(300));
  for (int wait = 600; lines.after == lines.before && wait < 5000; wait *= 2) {
    std::filesystem::remove(folder.output);
    lines = interrupt_after(folder, std::chrono::milliseconds(wait));
  }
  EXPECT_GT(lines.after, lines.before);
  const auto written = written_lines(folder);
  const std::string all = folder.run({"--resume"});
  EXPECT_LT(written.size(), lines_of(all).size());
  expect_some_of(written, lines_of(all));
}

}  // namespace
}  // namespace regard::test
