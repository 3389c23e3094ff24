#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/child_process.h"
#include "cli/model_folder.h"
#include "text/utf8.h"

namespace regard::test {
namespace {

// A model that would speak for hours.
const TinyLlama kEndless{.context = 1 << 20, .has_end_token = false};

TEST(Interrupt, CtrlCEndsTheTextWithAWholeLineAndExitCode130) {
  const ModelFolder folder(kEndless);
  ChildProcess command({"generate", "-m", folder.gguf, "-p", "the", "-n", "1000000", "--threads", "1"});
  command.wait_for_output(20);
  command.send_signal(SIGINT);
  const Finished result = command.finish();
  EXPECT_EQ(result.exit_code, 130) << "signal " << result.signal;
  ASSERT_FALSE(result.out.empty());
  EXPECT_EQ(result.out.back(), '\n');
  EXPECT_NE(result.err.find(" generated"), std::string::npos) << result.err;
}

// Minutes of prefill, with nothing to keep.
TEST(Interrupt, CtrlCBeforeTheFirstTokenEndsTheCommandAtOnce) {
  const ModelFolder folder(TinyLlama{.layers = 32, .context = 1 << 20});
  std::string tokens = "1";
  for (int i = 0; i < 60'000; ++i) tokens += ",7";
  ChildProcess command({"generate", "-m", folder.gguf, "--tokens", tokens, "-n", "1", "--threads", "1"});
  // The model is small: after a second it has long been loaded. A Ctrl-C that comes earlier ends the command as well.
  std::this_thread::sleep_for(std::chrono::seconds(1));
  command.send_signal(SIGINT);
  const Finished result = command.finish();
  EXPECT_EQ(result.signal, SIGINT) << "exit code " << result.exit_code << " " << result.err;
  EXPECT_EQ(result.out, "");
}

TEST(Interrupt, CtrlCWithJsonStillPrintsTheObject) {
  const ModelFolder folder(kEndless);
  ChildProcess command({"generate", "-m", folder.gguf, "-p", "the", "-n", "1000000", "--threads", "1", "--json"});
  command.wait_until_it_catches(SIGINT);
  command.send_signal(SIGINT);
  const Finished result = command.finish();
  EXPECT_EQ(result.exit_code, 130) << "signal " << result.signal;
  EXPECT_GT(nlohmann::json::parse(result.out)["tokens"].size(), 0U);
}

}  // namespace
}  // namespace regard::test
