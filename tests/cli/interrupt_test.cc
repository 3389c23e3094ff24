#include <gtest/gtest.h>

#include <csignal>
#include <nlohmann/json.hpp>

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
