#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "cli/child_process.h"
#include "cli/model_folder.h"

namespace regard::test {
namespace {

// A model that would speak for hours.
const TinyLlama kEndless{.context = 1 << 20, .has_end_token = false};

const char* const kFull = "/dev/full";

std::vector<std::string> generate(const ModelFolder& folder, const char* tokens) {
  return {"generate", "-m", folder.gguf, "-p", "the", "-n", tokens, "--threads", "1"};
}

std::vector<std::string> batch(const ModelFolder& folder, const std::string& output) {
  const std::string requests = folder.write("requests.jsonl", R"({"id": "a", "prompt": "the", "max_tokens": 4})");
  return {"batch", "-m", folder.gguf, "-i", requests, "-o", output, "--threads", "1"};
}

TEST(StandardError, ClosedOrFullItChangesNeitherResultsNorExitCodes) {
  const ModelFolder folder(kEndless);
  const Finished expected = run_command(generate(folder, "8"));
  for (const char* error : {ChildProcess::kClosed, kFull}) {
    SCOPED_TRACE(error);
    const Finished text = ChildProcess(generate(folder, "8"), nullptr, error).finish();
    EXPECT_EQ(text.exit_code, 0) << "signal " << text.signal;
    EXPECT_EQ(text.out, expected.out);
    EXPECT_EQ(ChildProcess({"generate"}, nullptr, error).finish().exit_code, 2);
  }
}

// A closed stream's number would be given to the next file that is opened.
TEST(StandardError, ClosedItIsNeverWrittenIntoAFile) {
  const ModelFolder folder(kEndless);
  const std::string expected = folder.file("expected.jsonl");
  ASSERT_EQ(run_command(batch(folder, expected)).exit_code, 0);
  for (const char* error : {ChildProcess::kClosed, kFull}) {
    const std::string results = folder.file(std::string("results ") + (error == kFull ? "full" : "closed"));
    const Finished finished = ChildProcess(batch(folder, results), ChildProcess::kClosed, error).finish();
    EXPECT_EQ(finished.signal, 0);
    EXPECT_EQ(read_whole_file(results), read_whole_file(expected));
  }
}

TEST(StandardError, WithoutAReaderABatchStillWritesItsResults) {
  const ModelFolder folder(kEndless);
  const std::string results = folder.file("results.jsonl");
  ChildProcess command(batch(folder, results));
  command.abandon_error();
  EXPECT_EQ(command.finish().exit_code, 0);
  EXPECT_EQ(std::ranges::count(read_whole_file(results), '\n'), 1);
}

TEST(StandardOutput, FullOrClosedItIsAnError) {
  const ModelFolder folder(kEndless);
  const std::vector<std::vector<std::string>> commands = {
      generate(folder, "8"), {"--help"}, {"generate", "--help"}, {"inspect", folder.gguf}};
  for (const char* output : {ChildProcess::kClosed, kFull}) {
    for (const auto& command : commands) {
      const Finished finished = ChildProcess(command, output).finish();
      EXPECT_EQ(finished.exit_code, 2) << command[0] << " signal " << finished.signal;
      EXPECT_TRUE(finished.err.starts_with("regard: standard output can't be written")) << finished.err;
      EXPECT_EQ(std::ranges::count(finished.err, '\n'), 1) << finished.err;
    }
  }
}

TEST(StandardOutput, WithoutAReaderATextEndsWithAnError) {
  const ModelFolder folder(kEndless);
  ChildProcess command(generate(folder, "1000000"));
  command.wait_for_output(20);
  command.abandon_output();
  const Finished finished = command.finish();
  EXPECT_EQ(finished.exit_code, 2) << "signal " << finished.signal;
  EXPECT_EQ(finished.err, "regard: standard output can't be written: Broken pipe\n");
}

}  // namespace
}  // namespace regard::test
