// What ends a text, and what ends a batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

#include "cli/batch_folder.h"
#include "regard/tokenizer.h"
#include "support/property.h"
#include "support/random.h"

namespace regard::test {
namespace {

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

TEST(BatchCommand, TheNextRunRemovesWhatAKilledOneLeft) {
  const BatchFolder folder(request("a", "the", {{"max_tokens", 2}}));
  const std::string leftover = folder.write("results.jsonl.123456.tmp", "half");
  const std::vector<std::string> others = {folder.write("results.jsonl.tmp", "mine"),
                                           folder.write("results.jsonl.12x.tmp", "mine"),
                                           folder.write("other.jsonl.123456.tmp", "another's")};
  EXPECT_EQ(run_command(folder.command()).exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(leftover));
  for (const std::string& other : others) EXPECT_TRUE(std::filesystem::exists(other)) << other;
  const std::string cache = folder.file("cache.safetensors");
  const std::string of_cache = folder.write("cache.safetensors.7.tmp", "half");
  EXPECT_EQ(run_command({"generate", "-m", folder.gguf, "-p", "the", "-n", "1", "--save-cache", cache}).exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(of_cache));
}

TEST(BatchCommand, ABatchWhoseRequestsAllFailedEndsWithOne) {
  BatchFolder folder(request("a", "") + request("b", "the", {{"max_tokens", 0}}));
  const Finished finished = run_command(folder.command());
  EXPECT_EQ(finished.exit_code, 1);
  EXPECT_NE(finished.err.find("2 done, 2 of them with an error"), std::string::npos) << finished.err;
  EXPECT_EQ(lines_of(read_whole_file(folder.output)).size(), 2U);
}

// The text without a stop is the reference: it is cut before the first of the stops, and its tokens behind the one that
// completes it.
TEST(BatchCommand, AStopEndsTheTextBeforeIt) {
  const Json settings = {{"max_tokens", 60}, {"temperature", 2}, {"seed", 5}};
  BatchFolder whole(request("a", "the inn", settings));
  const Json reference = whole.results()[0];
  const auto tokens = reference["tokens"].get<std::vector<int32_t>>();
  const auto tokenizer = Tokenizer::from(Checkpoint::open(whole.gguf));
  const std::string text = tokenizer.decode(tokens);
  // Characters that are one byte each, so that the results file shows them as they are; across two tokens at least.
  size_t at = text.size();
  for (size_t i = 8; i + 4 < text.size() && at == text.size(); ++i)
    if (std::ranges::all_of(text.substr(i, 4), [](char c) { return c >= ' ' && c < 0x7F; })) at = i;
  ASSERT_LT(at, text.size()) << "no printable text to stop at";
  const std::string stop = text.substr(at, 4);
  for (const Json& stops : {Json(stop), Json({"not in the text", stop})}) {
    Json more = settings;
    more["stop"] = stops;
    BatchFolder folder(request("a", "the inn", more));
    const Json result = folder.results()[0];
    const auto kept = result["tokens"].get<std::vector<int32_t>>();
    EXPECT_EQ(result["finish_reason"], "stop");
    ASSERT_LT(kept.size(), tokens.size());
    EXPECT_TRUE(std::equal(kept.begin(), kept.end(), tokens.begin()));
    EXPECT_NE(tokenizer.decode(kept).find(stop), std::string::npos);
    EXPECT_EQ(tokenizer.decode(std::span(kept).first(kept.size() - 1)).find(stop), std::string::npos);
    const Json before =
        Json::parse(Json(text.substr(0, text.find(stop))).dump(-1, ' ', false, Json::error_handler_t::replace));
    EXPECT_EQ(result["text"], before);
  }
  for (const char* bad : {R"("")", "[5]", "7", R"([""])", "{}"}) {
    BatchFolder folder(R"({"id":"a","prompt":"the","stop":)" + std::string(bad) + "}");
    EXPECT_EQ(run_command(folder.command()).exit_code, 1) << bad;
    EXPECT_NE(read_whole_file(folder.output).find("\"error\":\"stop is "), std::string::npos) << bad;
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

// Prompts of many layers, where a signal comes in a step: its texts are none with an error, but simply not there.
TEST(BatchCommand, CtrlCInTheMiddleOfAStepLeavesNoTraceOfIt) {
  std::string words;
  for (int i = 0; i < 100; ++i) words += " the inn and hen " + std::to_string(i);
  std::string lines;
  for (int i = 0; i < 8; ++i) lines += request(std::to_string(i), std::to_string(i * i) + words, {{"max_tokens", 3}});
  BatchFolder folder(lines, {.layers = 48, .hidden = 64, .context = 4096, .has_end_token = false});
  ChildProcess command(folder.command({"--max-batch", "2"}));
  command.wait_until_it_catches(SIGINT);
  command.send_signal(SIGINT);
  const Finished finished = command.finish();
  EXPECT_EQ(finished.exit_code, 130) << "signal " << finished.signal;
  EXPECT_NE(finished.err.find(" 0 of them with an error"), std::string::npos) << finished.err;
  const auto written = written_lines(folder);
  EXPECT_LT(written.size(), 8U);
  for (const std::string& line : written) EXPECT_EQ(line.find("\"error\""), std::string::npos) << line;
  const auto resumed = lines_of(folder.run({"--resume"}));
  expect_some_of(written, resumed);
  EXPECT_EQ(resumed, lines_of(folder.run()));
}

TEST(BatchCommand, SigtermAndSighupEndABatchAsCtrlCDoes) {
  for (const int signal : {SIGTERM, SIGHUP}) {
    const BatchFolder folder(long_work());
    ChildProcess command(folder.command({"--max-batch", "3"}));
    wait_for_lines(folder, 0);
    command.send_signal(signal);
    const Finished finished = command.finish();
    EXPECT_EQ(finished.exit_code, 130) << "signal " << finished.signal;
    EXPECT_NE(finished.err.find(" requests: "), std::string::npos) << finished.err;
    EXPECT_GE(written_lines(folder).size(), 1U);
  }
}

}  // namespace
}  // namespace regard::test
